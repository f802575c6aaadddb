"""Runs the real train.py, in processes of its own, on the small emoji recipe."""

import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = "configs/limoe_emoji.py:runlocal"


def command(workdir, *more, config=CONFIG):
  return [
    sys.executable,
    "train.py",
    f"--config={config}",
    f"--workdir={workdir}",
    "--config.evaluators=()",
    *more,
  ]


def environment(as_users_run_it=False):
  """Two devices, and the flags and the cache by which the tests compile cheaply."""
  flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
  if as_users_run_it:
    flags = "--xla_force_host_platform_device_count=2"
  return os.environ | {
    "XLA_FLAGS": flags,
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
  }


def train(workdir, *more, config=CONFIG):
  return run(command(workdir, *more, config=config))


def run(arguments):
  return subprocess.run(
    arguments,
    cwd=ROOT,
    env=environment(),
    capture_output=True,
    text=True,
    timeout=900,
  )


def losses(workdir):
  """Step -> loss, as a string of digits: equality is bit by bit."""
  out = {}
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    if set(row) == {"step", "loss"}:
      out[row["step"]] = repr(row["loss"])
  return out


def has_metrics(workdir):
  return (workdir / "metrics.jsonl").exists()


def wait_for(ready, process, seconds=900):
  end = time.monotonic() + seconds
  while not ready():
    assert process.poll() is None, "the run ended too early"
    assert time.monotonic() < end, "nothing happened in time"
    time.sleep(0.02)
