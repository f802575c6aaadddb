"""benchmarks.step with tiny towers; the peer's half where it is installed."""

import importlib.util
import json

import jax
import pytest

from benchmarks import step
from benchmarks.contenders import ours
from model.encoders import count
from training import setup as setup_lib

# FLOPs of a tiny pair's last blocks for the tokens that are not pooled: of two trunks,
# those of queries, results, attention and MLP.
SPARED = 84_480 + 39_424
TINY = ["--size", "tiny", "--batch", "4", "--ceiling", "64", "--rounds", "2"]


def settings(size, *overrides):
  shape = step.COMMON | step.SHAPES[size]
  return dict(shape=shape, batch=4, dtype="bfloat16", overrides=overrides)


@pytest.fixture(autouse=True)
def compile_once(monkeypatch):
  """Lets a contender's process use the tests' cache of compiled programs."""
  cache = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))


def test_our_step_is_timed_in_a_process_of_its_own(tmp_path, capsys):
  out = tmp_path / "step.json"
  step.main([*TINY, "--only", "ours", "--set", "optimizer.b2=0.95", "--out", str(out)])
  report = json.loads(out.read_text())
  row = report["results"]["ours"]
  assert row["seconds"]["min"] > 0 and row["cpu_seconds"]["min"] > 0
  assert row["loss"] < 5 and row["parameters"] == 58_817 and row["temp_mib"] > 0
  assert row["gflops_per_example"] == pytest.approx(3e-9 * (556_800 - SPARED), abs=1e-4)
  assert row["cores"] == 1 and row["matmul_tflops"] > 0 and "jax" in row["versions"]
  assert report["command"].startswith("python -m benchmarks.step --size tiny")
  assert report["settings"]["overrides"] == ["optimizer.b2=0.95"]
  assert "over_open_clip" not in row and "ours" in capsys.readouterr().out


def test_without_the_peer_only_ours_is_timed(monkeypatch, capsys):
  monkeypatch.setattr(step.importlib.util, "find_spec", lambda name: None)
  measured = []

  def measure(settings, names, rounds, steps):
    measured.extend(names)
    return {}

  monkeypatch.setattr(step, "measure", measure)
  step.main(TINY)
  assert measured == ["ours"]
  assert "requirements-bench.txt" in capsys.readouterr().out


def test_contenders_have_the_parameters_that_open_clip_publishes():
  """Its ViT-B-16 has 149,620,737; ours counts the temperature apart."""
  table = count.parameter_table(ours.config_of(settings("B/16")).model)
  assert table.total + 1 == 149_620_737


def test_on_a_gpu_the_larger_model_runs_with_its_attention(monkeypatch):
  monkeypatch.setattr(step, "platform", lambda: "gpu")
  args = step.arguments(["--set", "model.remat=dots"])
  assert (args.size, args.dtype, args.batch, args.threads) == (
    "B/16",
    "bfloat16",
    256,
    0,
  )
  config = ours.config_of(settings(args.size, *args.overrides))
  built = setup_lib.build(config, devices=jax.devices()[:1])
  assert {m.trunk.attention for m in built.towers.modalities} == {"triton"}
  assert built.towers.remat == "dots"
  assert built.batch_spec()["image"].shape == (4, 224, 224, 3)


@pytest.mark.parametrize("key", ["model.remta", "model.trunk.widht", "optimizer.lr.x"])
def test_a_key_that_is_not_there_is_not_set(key):
  with pytest.raises((KeyError, AttributeError, TypeError)):
    ours.config_of(settings("tiny", f"{key}=1"))


@pytest.mark.skipif(
  importlib.util.find_spec("open_clip") is None, reason="needs requirements-bench.txt"
)
def test_the_peer_does_the_same_work(tmp_path):
  out = tmp_path / "step.json"
  step.main([*TINY, "--eager", "--out", str(out)])
  rows = json.loads(out.read_text())["results"]
  assert rows["ours"]["parameters"] == rows["open_clip"]["parameters"]
  flops = [rows[name]["gflops_per_example"] for name in ("ours", "open_clip")]
  assert flops[0] + 3e-9 * SPARED == pytest.approx(flops[1], rel=0.02)
  assert rows["open_clip"]["loss"] < 5
  assert rows["ours"]["over_open_clip"]["seconds"]["median"] > 0
