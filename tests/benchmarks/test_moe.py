"""benchmarks.moe with a tiny trunk, and that it compares like with like."""

import json

import jax
import pytest

from benchmarks import device, moe
from model.encoders import count
from training import chips

TINY = ["--size", "tiny", "--batch", "8", "--ceiling", "64", "--rounds", "2"]


def config(arm, size="small"):
  return moe.config_of(size, arm, batch=8, dtype="float32", experts=8, group=8)


def test_a_dispatch_is_timed_or_its_refusal_told(tmp_path, capsys):
  out = tmp_path / "moe.json"
  arms = ["--arms", "gather", "dropless"]
  moe.main([*TINY, *arms, "--set", "optimizer.b2=0.95", "--out", str(out)])
  report = json.loads(out.read_text())
  rows = report["results"]
  assert set(rows) == {"dense", "gather"}  # the twin always
  assert set(report["refused"]) == {"dropless"}
  assert "ragged_dot computes every expert" in report["refused"]["dropless"]
  for row in rows.values():
    assert row["seconds"]["min"] > 0 and 0 < row["loss"] < 5 and row["temp_mib"] > 0
  assert set(rows["dense"]["over_dense"]["seconds"].values()) == {1.0}
  dense, sparse = rows["dense"], rows["gather"]
  assert sparse["parameters"] > 2 * dense["parameters"]
  router = 16 * 8  # width by experts, in the one sparse block
  assert sparse["active_parameters"] == dense["active_parameters"] + router
  assert report["command"].startswith("python -m benchmarks.moe --size tiny")
  assert report["matmul_tflops"] > 0 and report["settings"]["experts"] == 8
  assert len(capsys.readouterr().out.splitlines()) == 3 + 2 + 1


@pytest.mark.parametrize("size", moe.SIZES)
def test_active_flops_are_equal_but_for_the_router(size):
  sparse = config("gather", size)
  flops = [
    sum(count.flops_per_example(c.model).values())
    for c in (config("dense", size), sparse)
  ]
  m = sparse.model
  tokens = sum(count.configs.modalities(m)[i].tokens for i in range(len(m.modalities)))
  router = 2 * tokens * m.trunk.width * m.moe.experts * (m.trunk.depth // 2)
  assert flops[1] - flops[0] == pytest.approx(router)


def test_every_arm_is_the_dispatch_it_is_named_for():
  assert [config(arm).model.moe.dispatch for arm in moe.ARMS[1:]] == [*moe.ARMS[1:]]
  assert config("dense").model.moe.every == 0


def test_a_gpu_gets_the_larger_size_and_its_data_sheet(monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  args = moe.arguments([])
  assert (args.size, args.dtype, args.steps) == ("B/16", "bfloat16", 10)
  assert args.overrides == ["model.trunk.attention=cudnn", "model.remat=activations"]
  monkeypatch.setattr(chips, "peak_flops", lambda kind: 989e12)
  assert device.describe()["data_sheet_tflops"] == 989.0
