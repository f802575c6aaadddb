"""What the tool says of a checkpoint, whole, damaged or compared with another."""

import json
import shutil

import jax
import jax.numpy as jnp
import pytest

from tests.small import tiny
from tools import inspect_checkpoint
from training import checkpoint, environment
from training.state import TrainState


def made(workdir, value):
  config = tiny()
  keeper = checkpoint.Checkpointer(str(workdir), config.checkpoint)
  params = {"towers": {"stem_image": {"kernel": jnp.full((4, 3), value)}}}
  moments = (params, [jnp.zeros(2)])
  rng = jnp.zeros(2, jnp.uint32)
  for step in (4, 8):
    state = TrainState(jnp.int32(step), params, moments, {}, params, rng)
    keeper.save(step, state, {"example": 16 * step, "dropped": 0})
  keeper.close()
  checkpoint.save_config(str(workdir), config)
  environment.write(str(workdir))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  for name, value in (("a", 1.0), ("b", 1.5)):
    made(folder / name, value)
  return folder


def test_the_overview_says_what_it_is_made_of(runs, capsys):
  assert inspect_checkpoint.main([str(runs / "a")]) == 0
  shown = capsys.readouterr().out
  lines = [line for line in shown.splitlines() if line]
  rows = dict(line.split(maxsplit=1) for line in reversed(lines))
  assert rows["step"] == "8 of 10" and "UTC" in rows["saved"]
  assert "whole: " in rows["integrity"] and rows["data"] == "example 128, dropped 0"
  assert "objective contrastive" in rows["run"] and "image, text" in rows["model"]
  assert jax.__version__ in rows["versions"]
  assert rows["params/towers/stem_image"].split() == ["1", "12", "48"]
  assert rows["opt_state"].split() == ["2", "14", "56"]
  assert rows["total"].split() == ["6", "41", "164"]
  older = str(runs / "a" / "checkpoints" / "step_00000004")
  assert inspect_checkpoint.main([older, "--params", "--fast"]) == 0
  shown = capsys.readouterr().out
  assert "step         4 of 10" in shown and "steps kept   4, 8" in shown
  row = next(x for x in shown.splitlines() if x.startswith("ema/towers/stem_image/"))
  assert row.split() == ["ema/towers/stem_image/kernel", "(4,", "3)", "float32", "48"]
  assert "not looked at" in shown


def test_damage_is_seen_and_no_array_is_read(runs, tmp_path, capsys, monkeypatch):
  copy = shutil.copytree(runs / "a", tmp_path / "a")
  monkeypatch.setattr(inspect_checkpoint.Checkpoint, "arrays", pytest.fail)
  path = copy / "checkpoints" / "step_00000008" / "data" / "metadata"
  path.write_text(path.read_text() + " ")
  assert inspect_checkpoint.main([str(copy)]) == 1
  shown = capsys.readouterr().out
  assert "DAMAGED: data/metadata: 31 bytes, 30 were written" in shown


def test_two_are_compared_array_by_array(runs, tmp_path, capsys):
  a, b = str(runs / "a"), str(runs / "b")
  assert inspect_checkpoint.main([a, "--diff", a]) == 0
  assert "equal bit for bit: 6 arrays" in capsys.readouterr().out
  copy = shutil.copytree(runs / "b", tmp_path / "b")
  config = json.loads((copy / "config.json").read_text())
  config["seed"] = 7
  (copy / "config.json").write_text(json.dumps(config))
  assert inspect_checkpoint.main([a, "--diff", str(copy)]) == 1
  lines = capsys.readouterr().out.splitlines()
  kernel = "towers/stem_image/kernel: 12 of 12 differ, by 0.5 at most"
  assert lines == [
    f"ema/{kernel}",
    f"opt_state/0/{kernel}",
    f"params/{kernel}",
    "config.seed: 0 | 7",
  ]
  assert inspect_checkpoint.main([a, "--diff", b]) == 1


def test_an_absent_one_is_named(tmp_path, capsys):
  assert inspect_checkpoint.main([str(tmp_path)]) == 2
  assert "no checkpoint in" in capsys.readouterr().err
