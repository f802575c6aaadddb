"""aot_compile for GPUs: what is described, and the real compiler if it is there."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tools.aot import run
from tools import aot_step, hlo_text, topology
from training import chips


def test_gpus_have_hosts_and_no_slices():
  with pytest.raises(ValueError, match="GPUs have hosts, as in h100:2x8"):
    topology.devices("h100:8", slices=2)


@pytest.mark.parametrize("name", topology.GPUS)
def test_gpus_are_in_the_table_of_chips(name):
  gpu = topology.GPUS[name]
  chip = chips.find(gpu.name)
  assert abs(gpu.memory - chip.hbm / 0.75) < 2**20
  assert gpu.rate == pytest.approx(chip.hbm_rate, rel=0.05)  # of the data sheet
  assert f'name: "{gpu.name}"' in topology.target(gpu)


def test_the_largest_arrays_of_a_program_are_named():
  @jax.jit
  def step(x):
    with jax.named_scope("here"):
      return jnp.sort(x[:, None] + x[None])

  compiled = step.lower(jax.ShapeDtypeStruct((64,), np.float32)).compile()
  first, *_ = aot_step.largest(hlo_text.parse(compiled.as_text()))
  assert first["bytes"] == 64 * 64 * 4 and first["shape"] == "f32[64,64]"
  assert "here" in first["source"]


needs_plugin = pytest.mark.skipif(
  importlib.util.find_spec("jax_plugins") is None
  or importlib.util.find_spec("jax_plugins.xla_cuda13") is None,
  reason='JAX\'s plugin for GPUs is no dev requirement: pip install "jax[cuda13]"',
)


@needs_plugin
def test_a_real_step_compiles_for_gpus(tmp_path):
  arguments = ["--topology", "h100:2x2", "--mesh", "fsdp=2,expert=2"]
  done, out = run(arguments, tmp_path)
  assert done.returncode == 0, done.stderr[-3000:]
  r = json.loads(out.read_text())
  assert (r["verdict"], r["device_kind"]) == ("fits", "NVIDIA H100 80GB HBM3")
  assert r["devices"] == 4 and "jax-cuda13-plugin" in r["versions"]
  assert 0 < r["memory"]["temp"] < r["memory"]["peak"] < r["hbm_limit"]
  table = {(c["kind"], c["axes"]): c for c in r["collectives"]}
  assert table[("all-to-all", "expert")]["count"] >= 8
  assert table[("all-gather", "fsdp")]["bytes"] > 0
  assert 0 < r["estimate"]["mfu"] < 1
  assert np.isclose(r["flops"]["compiled"], r["flops"]["executed"], rtol=0.05)


@needs_plugin
@pytest.mark.slow
def test_what_a_gpu_lacks_room_for_is_said(tmp_path):
  arguments = ["--topology", "h100:1", "--set", "batch_size=4194304"]
  done, out = run(arguments, tmp_path)
  assert done.returncode == 1, done.stderr[-3000:]
  r = json.loads(out.read_text())
  assert r["verdict"] == "does not fit" and r["oom"]["needed"] > r["hbm_limit"]
  assert "verdict: does not fit" in done.stdout
  assert any(buffer["source"] for buffer in r["oom"]["largest"])
