"""Bring-up of several processes: one call that is a no-op on a laptop.

A process is told that it is one of many by, in this order:
  1. JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
     JAX_PROCESS_ID, also accepted without the prefix JAX_;
  2. a launcher that JAX itself reads: TPU pods, Slurm, Open MPI, Kubernetes jobs.
"""

from collections.abc import Mapping
import dataclasses
import glob
import importlib.util
import os
import socket
import threading
from typing import Any

from absl import logging
import jax

_KEYS = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
# JAX's own timeout aborts the process (exit 134) with a C++ stack trace. Ours comes
# first, with words; JAX's stays behind it as a backstop.
_GRACE_S = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
  """How the processes find each other; None where JAX detects it from its launcher."""

  launcher: str
  address: str | None = None
  count: int | None = None
  index: int | None = None


def initialize(timeout_s: float = 300) -> None:
  """Joins this process to its peers; does nothing where there are none.

  Call it before anything else touches a device. Safe to call twice. CPU processes talk
  through gloo, JAX's default.

  Args:
    timeout_s: seconds to wait for all processes.

  Raises:
    ValueError: an incomplete or contradictory environment.
    RuntimeError: the peers did not meet; names the address, the process and what to
      check.
  """
  if jax.distributed.is_initialized():
    return
  launch = detect(os.environ)
  if launch is None:
    return
  failure = _within(timeout_s, lambda: _join(launch, timeout_s))
  if failure is None:
    logging.info("process %d of %d joined", jax.process_index(), jax.process_count())
    return
  if launch.launcher == "tpu" and isinstance(failure, ValueError):
    # A TPU machine outside any pod: JAX found no cluster. A real pod would not get past
    # the TPU runtime alone, so this cannot silently train on a part of it.
    logging.info("no TPU pod detected (%s): running as a single process", failure)
    return
  raise RuntimeError(_explain(launch, timeout_s, failure)) from failure


def detect(env: Mapping[str, str]) -> Launch | None:
  """Returns how to join the peers, or None for a process on its own.

  Args:
    env: `os.environ`.

  Raises:
    ValueError: some of the three variables are set but not all, or are no numbers.
  """
  explicit = _explicit(env)
  if explicit is not None:
    return explicit if explicit.count != 1 else None
  if _above_one(env, "SLURM_NTASKS") and "SLURM_STEP_NODELIST" in env:
    return Launch(launcher="slurm")  # a step of srun; an salloc shell is on its own
  if _above_one(env, "OMPI_COMM_WORLD_SIZE"):
    return Launch(launcher="ompi")
  if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
    return Launch(launcher="k8s")
  platforms = env.get("JAX_PLATFORMS", "tpu")
  if "tpu" in platforms.split(",") and _has_tpu():
    return Launch(launcher="tpu")
  return None


def _explicit(env: Mapping[str, str]) -> Launch | None:
  found = {key: env.get(f"JAX_{key}") or env.get(key) for key in _KEYS}
  given = {key: value for key, value in found.items() if value}
  # PROCESS_ID and NUM_PROCESSES alone are names that other tools use too.
  if "COORDINATOR_ADDRESS" not in given and not any(f"JAX_{k}" in env for k in _KEYS):
    return None
  missing = [f"JAX_{key}" for key in _KEYS if key not in given]
  if missing:
    have = ", ".join(f"JAX_{key}={value}" for key, value in given.items())
    raise ValueError(
      f"multi-process environment is incomplete: got {have}, but not "
      f"{' and '.join(missing)}. Set all three on every process, or none of them."
    )
  address, numbers = given["COORDINATOR_ADDRESS"], []
  for key in _KEYS[1:]:
    if not given[key].isdecimal():
      raise ValueError(f"JAX_{key}={given[key]!r} is no whole number")
    numbers.append(int(given[key]))
  count, index = numbers
  if not index < count:
    raise ValueError(
      f"JAX_PROCESS_ID={index} is not below JAX_NUM_PROCESSES={count}; "
      f"processes are numbered 0 to {count - 1}"
    )
  host, _, port = address.rpartition(":")
  if not host or not port.isdecimal():
    raise ValueError(
      f"JAX_COORDINATOR_ADDRESS={address!r} is not host:port, e.g. 10.0.0.2:8476"
    )
  return Launch(launcher="environment", address=address, count=count, index=index)


def _above_one(env: Mapping[str, str], key: str) -> bool:
  return env.get(key, "1").isdecimal() and int(env.get(key, "1")) > 1


def _has_tpu() -> bool:
  chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
  return bool(chips) and importlib.util.find_spec("libtpu") is not None


def _join(launch: Launch, timeout_s: float) -> None:
  jax.distributed.initialize(
    coordinator_address=launch.address,
    num_processes=launch.count,
    process_id=launch.index,
    cluster_detection_method="deactivate" if launch.address else None,
    initialization_timeout=int(timeout_s) + _GRACE_S,
  )


def _within(timeout_s: float, fn: Any) -> Exception | None:
  """Runs `fn` in a thread; returns its exception, or TimeoutError if it is not back."""
  failures: list[Exception] = []

  def run():
    try:
      fn()
    except Exception as error:
      failures.append(error)

  # Daemon: the readable error must be able to end the process while JAX still waits.
  thread = threading.Thread(target=run, name="jax.distributed.initialize", daemon=True)
  thread.start()
  thread.join(timeout_s)
  if thread.is_alive():
    return TimeoutError(f"not all processes met within {timeout_s:g} s")
  return failures[0] if failures else None


def _explain(launch: Launch, timeout_s: float, failure: Exception) -> str:
  address = launch.address or "found by the launcher"
  who = "?" if launch.index is None else launch.index
  of = "?" if launch.count is None else launch.count
  checks = [
    "every process was started, with the same address and number of processes and its "
    "own process id",
    "the host of process 0 can be reached from here and no firewall closes the port",
  ]
  if launch.address and launch.index != 0:
    heard = _listens(launch.address)
    checks.insert(
      0,
      f"something listens at {address}, so a peer is missing"
      if heard
      else f"nothing listens at {address}: process 0 is not running, ended, or has "
      "another address",
    )
  if any("_proxy" in key.lower() for key in os.environ):
    checks.append("*_proxy variables can make the connection hang: unset them")
  listed = "\n".join(f"  - {line}" for line in checks)
  return (
    f"process {who} of {of} could not join the others: coordinator {address}, launcher "
    f"{launch.launcher}, timeout {timeout_s:g} s.\n"
    f"{type(failure).__name__}: {failure}\nCheck:\n{listed}"
  )


def _listens(address: str) -> bool:
  host, _, port = address.rpartition(":")
  try:
    with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
      return True
  except OSError:
    return False
