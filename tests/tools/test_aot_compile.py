import importlib.util
import json
import re

import jax
import numpy as np
import pytest

from configs import limoe_s32
from sharding import mesh as meshes
from tests import small
from tests.tools.aot import ROOT, run
from tools import (
  aot_compile,
  aot_least,
  aot_report,
  aot_step,
  hlo_collectives,
  hlo_text,
  topology,
)
from training import setup as setup_lib


def test_the_steps_exchange_tokens_over_the_expert_axis_and_no_more():
  config = small.limoe(batch_size=32)
  config.model.moe.update(dict(capacity=1.0, capacity_eval=1.0))
  config.mesh.update(dict(data=2, expert=4))
  setup = setup_lib.build(config)
  # 8 groups of 4 examples of 4 + 6 tokens: 40 tokens, 12 slots for each of 4 experts.
  slots = 4 * 8 * 12 // 8  # on one device
  one = slots * 16 * 4 * 3 // 4  # bytes that leave it: width 16, f32, 3 of 4 devices
  for evaluate, times in ((False, 4), (True, 2)):
    _, text = aot_step.compile_to_text(aot_step.lower(setup, evaluate))
    module = hlo_text.parse(text)
    found = hlo_collectives.find(module, dict(setup.mesh.shape))
    table = hlo_collectives.by_kind_and_axes(found)
    moved = sum(s for (kind, a), (_, s) in table.items() if "to-all" in kind)
    assert moved == times * one, table
    assert ("all-reduce", "data+expert") in table  # the global entropy's mean
    told = aot_least.lines(setup, found, "eval" if evaluate else "train")
    sent, least = ({x["what"]: x[k] for x in told} for k in ("sent", "least"))
    assert sum(sent.values()) == sum(c.total for c in found)
    # 12 slots for 10 tokens.
    assert sent["exchange"] == moved and least["exchange"] * 12 == moved * 10


@pytest.mark.parametrize(("remat", "products"), [("dots", 6), ("full", 7)])
def test_remat_repeats_no_exchange_and_dots_no_expert(remat, products):
  config = small.limoe(batch_size=32)
  config.model.remat = remat
  config.mesh.update(dict(data=2, expert=4))
  text = aot_step.lower(setup_lib.build(config)).as_text()
  assert text.count("stablehlo.all_to_all") == 4  # of the one sparse layer
  # Two products forward, four backward; "full" makes the first again: what the second
  # gave is in the exchange.
  made = re.findall(r"dot_general.* batching_dims = \[0\] x \[0\],", text)
  assert len(made) == products


def test_executed_flops_exceed_the_models_by_capacity_and_recomputation():
  config = small.limoe()
  config.model.moe.update(dict(capacity=2.0, capacity_eval=4.0))
  plain = aot_step.flops(config)
  experts = 16 * 10 * 4 * 16 * 32  # batch, tokens, both matmuls, width, hidden
  assert plain["executed"] - plain["model"] == 3 * experts  # one slot more per token
  config.model.remat = "dots"
  again = aot_step.flops(config)["executed"] - plain["executed"]
  attention = 16 * 2 * 4 * 16 * (4**2 + 6**2)  # batch, depth, both matmuls, width
  assert again == attention
  config.model.remat = "full"
  again = aot_step.flops(config)["executed"] - plain["executed"]
  assert np.isclose(again, plain["executed"] / 3)
  evaluation = aot_step.flops(config, evaluate=True)
  assert np.isclose(evaluation["model"], plain["model"] / 3)
  assert np.isclose(evaluation["executed"] - evaluation["model"], 3 * experts)


@pytest.mark.slow
def test_the_unrolled_sparse_step_costs_little_more_than_its_dense_twin():
  counted, expected = {}, {}
  for every in (0, 2):
    config = limoe_s32.get_config()
    config.batch_size = config.model.moe.group
    config.model.update(dict(scan=False, remat="none"))
    config.model.moe.every = every
    config.mesh.update(dict(data=1, fsdp=1, expert=1))
    setup = setup_lib.build(config, devices=jax.devices()[:1])
    counted[every] = aot_step.lower(setup).cost_analysis()["flops"]
    expected[every] = aot_step.flops(config)["executed"]
    assert np.isclose(counted[every], expected[every], rtol=0.02)
  assert counted[2] < 1.05 * counted[0]  # 1.15 is the most that is asked for


def test_routers_that_fill_their_slots_waste_none_in_evaluation_either():
  config = small.limoe()
  config.model.moe.update(dict(router="expert_choice", group=1, capacity_eval=4.0))
  config.model.moe.losses.load = 0.0
  for evaluate in (False, True):
    flops = aot_step.flops(config, evaluate=evaluate)
    assert flops["executed"] == flops["model"]


def test_a_top_1_model_costs_its_router_more_than_its_dense_twin():
  config = small.limoe()
  flops = aot_step.flops(config)
  router = 16 * 10 * 2 * 16 * 4  # batch, tokens, multiply and add, width, experts
  assert flops["model"] - flops["dense"] == 3 * router
  config.model.moe.update(dict(every=0))
  assert aot_step.flops(config)["model"] == flops["dense"]


LONG = """RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. \
Used 30.70G of 15.75G hbm. Exceeded hbm capacity by 14.95G.

Total hbm usage >= 31.20G:
    reserved        530.00M

  Largest program allocations in hbm:

  1. Size: 12.00G
     Operator: op_name="jit(step)/mul" source_file="x.py" source_line=3
     Shape: f32[32768,98304]{1,0:T(8,128)}
     Unpadded size: 12.00G
     XLA label: fusion.1 = fusion(...)
     Allocation type: HLO temp
     ==========================

  2. Size: 384.00M
     Shape: bf16[128,4096,352]{2,1,0}
     Unpadded size: 352.00M
     Allocation type: HLO temp
     ==========================
"""
SHORT = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the \
total memory required for HLO temporaries (27.64G) exceeds available HBM (15.75G). HLO \
module: jit_step.
See https://openxla.org/xla/errors/error_1000 for more details."""


def test_both_reports_of_memory_running_out_are_read():
  long, short = aot_step.parse_oom(LONG), aot_step.parse_oom(SHORT)
  assert long["needed"] == round(30.7 * 2**30)
  assert long["available"] == short["available"] == round(15.75 * 2**30)
  assert short["needed"] == round(27.64 * 2**30)
  assert [b["bytes"] for b in long["largest"]] == [12 * 2**30, 384 * 2**20]
  assert long["largest"][0]["source"] == "jit(step)/mul"
  assert long["largest"][1]["shape"] == "bf16[128,4096,352]{2,1,0}"
  assert short["largest"] == []
  other = aot_step.parse_oom("RESOURCE_EXHAUSTED: something new")
  assert other["needed"] is None and "something new" in other["message"]


def test_keys_of_the_config_can_be_set():
  config = small.limoe()
  aot_compile.override(config, ["model.moe.every=0", "model.remat=full"])
  assert config.model.moe.every == 0 and config.model.remat == "full"
  with pytest.raises(ValueError, match=r"--set model.remta: .* did you mean remat\?"):
    aot_compile.override(config, ["model.remta=full"])
  with pytest.raises(ValueError, match="expected key=value"):
    aot_compile.override(config, ["model.remat"])


@pytest.mark.parametrize(
  "name", ["v5e", "h99:2x2", "v5e:2", "v5e:2x2x2x2", "v5e:axb", "h100:0", "h100:2x2x2"]
)
def test_a_topology_is_kind_and_shape(name):
  with pytest.raises(ValueError, match="expected kind:AxB"):
    topology.devices(name)


def test_devices_that_are_not_in_the_table_are_refused():
  with pytest.raises(ValueError, match="'cpu': expected one of"):
    aot_step.measure(small.tiny(), jax.devices()[:1])


def test_lowering_needs_no_data_and_makes_no_array(monkeypatch):
  setup = setup_lib.build(small.limoe(), devices=jax.devices()[:1])
  monkeypatch.setattr(setup_lib.Setup, "init", _abstract_only(setup_lib.Setup.init))
  assert meshes.batch_shards(setup.mesh) == 1
  assert "func.func public @main" in aot_step.lower(setup).as_text()


def _abstract_only(init):
  def run(self, key):
    assert isinstance(key, jax.core.Tracer), "a key was made on a device"
    return init(self, key)

  return run


def test_docs_show_what_the_committed_results_say():
  shown = {"docs/scale.md": aot_report.table, "README.md": aot_report.short}
  committed = sorted(ROOT.glob("docs/results/aot/*.json"))
  for name, made in shown.items():
    text = (ROOT / name).read_text()
    block = re.search(r"<!-- aot: (.*?) -->\n(.*?)\n<!-- end -->", text, re.S)
    assert block, f"{name} has no table"
    files = [ROOT / file for file in block[1].split()]
    assert block[2] == made([json.loads(f.read_text()) for f in files])
    assert (
      sorted(files) == committed
      if name == "docs/scale.md"
      else set(files) <= set(committed)
    )


def result(**changes):
  """What `aot_step.measure` finds, as far as tables need it."""
  sent = {"kind": "all-to-all", "axes": "expert", "count": 1, "bytes": 2**20}
  made = {
    **dict(name="tiny", topology="v5e:2x2", slices=1, set=[], step="train", scan=True),
    **dict(mesh=dict(data=4, tensor=1), batch_size=64, remat="dots", verdict="fits"),
    **dict(hbm_limit=2**34, memory=dict(peak=2**32), collectives=[sent, sent]),
    "parameters": dict(total=8, active=4),
    "flops": dict(model=110.0, executed=120.0, dense=100.0),
    "estimate": dict(
      **dict(compute=2e-3, memory=1e-3, collectives=1e-3, step=3e-3),
      **dict(examples_per_s=64 / 3e-3, mfu=0.25),
    ),
  }
  return made | changes


def test_sparse_steps_are_compared_with_their_dense_twins():
  sparse = result()
  twin = result(
    parameters=dict(total=4, active=4),
    set=["model.moe.every=0"],
    flops=dict(model=100.0, executed=100.0, dense=100.0),
    estimate=dict(sparse["estimate"], step=2e-3),
    collectives=sparse["collectives"][:1],
  )
  rows = aot_report.table([sparse, twin]).splitlines()
  assert "| tiny | v5e:2x2 | data 4 | 64 | dots | 4.0 of 16.0 | expert 2 |" in rows[2]
  assert rows[3].startswith("| tiny, dense twin | v5e:2x2 |")
  assert rows[-1] == "| tiny | v5e:2x2 | 1.100 | 1.200 | - | 2.00 | 1.50 |"
  other = dict(twin, topology="v5p:2x2x1")
  assert aot_report.twins([sparse, other]).endswith("1.100 | - | - | - | - |")
  assert len(aot_report.short([sparse, twin]).splitlines()) == 3


def test_a_compiled_step_that_does_not_fit_says_what_is_large():
  buffer = dict(bytes=2**34, shape="f32[1]", source="here", kind="fusion")
  oom = dict(needed=2**35, available=2**34, largest=[buffer])
  r = result(verdict="does not fit", oom=oom, memory=dict(peak=2**35))
  assert "**does not fit**: 32.0 of 16.0 | expert 2 |" in aot_report.table([r])


def test_a_step_that_does_not_fit_has_a_row_too():
  r = result(verdict="does not fit", oom=dict(needed=2**35))
  for key in ("memory", "flops", "estimate", "collectives"):
    del r[key]
  assert "**does not fit**: 32.0 of 16.0 | - |" in aot_report.table([r])


needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu is no dev requirement: with it, JAX looks for a TPU wherever "
  "JAX_PLATFORMS is not set, and complains; pip install -r requirements-aot.txt",
)


@needs_libtpu
def test_a_real_step_compiles_for_a_tpu(tmp_path):
  mesh = "fsdp=2,expert=2"
  done, out = run(["--topology", "v5e:2x2", "--mesh", mesh], tmp_path)
  assert done.returncode == 0, done.stderr[-3000:]
  r = json.loads(out.read_text())
  assert (r["verdict"], r["device_kind"], r["devices"]) == ("fits", "TPU v5 lite", 4)
  assert r["mesh"] == {"data": 1, "fsdp": 2, "expert": 2, "tensor": 1}
  assert 0 < r["memory"]["temp"] < r["memory"]["peak"] < r["hbm_limit"]
  assert not r["loops_of_unknown_length"]
  table = {(c["kind"], c["axes"]): c for c in r["collectives"]}
  # Two sparse layers in a scan, each four exchanges: out and back, and their gradients.
  assert table[("all-to-all", "expert")]["count"] == 8
  # 2 groups a device of 4 * 8 tokens: 8 slots of 4 experts, width 128, bf16; half go.
  assert table[("all-to-all", "expert")]["bytes"] == 8 * (2 * 4 * 8) * 128 * 2 // 2
  assert table[("all-gather", "fsdp")]["bytes"] > 0
  assert 0 < r["estimate"]["mfu"] < 1
  # Nothing is counted twice or left out, the two turns of the scan included.
  assert np.isclose(r["flops"]["compiled"], r["flops"]["executed"], rtol=0.05)
  assert "verdict: fits" in done.stdout and str(tmp_path) not in r["command"]


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
  ("arguments", "devices", "returncode"),
  [
    (["--topology", "v4:2x2x1", "--mesh", "data=2,expert=2"], 4, 0),
    (["--topology", "tpu7x:2x2x1", "--mesh", "data=4,expert=2"], 8, 0),
    (["--topology", "v5e:2x2", "--slices", "2", "--mesh", "data=8"], 8, 0),
    (["--topology", "v6e:2x2", "--mesh", "expert=4", "--eval"], 4, 0),
    (["--topology", "v5e:2x2", "--mesh", "data=4", "--unrolled"], 4, 0),
    (
      ["--topology", "v5e:2x2", "--mesh", "data=4", "--set", "batch_size=4194304"],
      *(4, 1),
    ),
  ],
)
def test_other_chips_and_steps(tmp_path, arguments, devices, returncode):
  done, out = run(arguments, tmp_path)
  assert done.returncode == returncode, done.stderr[-3000:]
  r = json.loads(out.read_text())
  assert r["devices"] == devices
  assert r["verdict"] == ("fits" if returncode == 0 else "does not fit")
  if "--slices" in arguments:  # gradients are summed inside slices, then between them
    network = {c["kind"]: c["bytes"] for c in r["collectives"] if c["axes"] == "slices"}
    assert network["all-reduce"] > 0
    assert set(network) <= set(hlo_collectives.KINDS) and min(network.values()) > 0
  if "--unrolled" in arguments:
    assert np.isclose(r["flops"]["unrolled"], r["flops"]["executed"], rtol=0.3)
    assert r["flops"]["compiled"] < r["flops"]["unrolled"]  # products alone


@needs_libtpu
@pytest.mark.slow
def test_pieces_travel_while_experts_compute(tmp_path):
  arguments = ["--topology", "v5p:2x2x1", "--mesh", "expert=4"]
  arguments += ["--set", "model.moe.group=8"]  # 16 slots of each expert: 2 tiles
  found = {}
  for pieces in (1, 2):
    done, out = run([*arguments, "--set", f"model.moe.pieces={pieces}"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    found[pieces] = json.loads(out.read_text())
  whole, parts = (
    [c for c in r["largest_collectives"] if c["kind"] == "all-to-all"]
    for r in found.values()
  )
  assert whole and not any(c["asynchronous"] for c in whole)
  assert sum(c["asynchronous"] for c in parts) >= len(parts) / 2
  a, b = (r["estimate"] for r in found.values())
  assert np.isclose(a["collectives"], b["collectives"]) and b["exposed"] < a["exposed"]
