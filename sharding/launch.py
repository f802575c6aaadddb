"""How this process was told that it is one of many, by its environment.

1. JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and
   JAX_PROCESS_ID, also accepted without the prefix JAX_;
2. a launcher that JAX itself reads: TPU pods, Slurm, Open MPI, Kubernetes jobs.
"""

from collections.abc import Mapping
import dataclasses
import glob
import importlib.util
import re

_KEYS = ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID")
_SLURM_PORTS = 57_344  # to 61,439: JAX takes one of the 4096 above these


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch:
  """How the processes find each other; None where JAX detects it from its launcher.

  Attributes:
    launcher: what started the processes.
    address: host:port of JAX's service in process 0.
    count: of processes.
    index: of this one.
    roll: host:port where process 0 watches who joins, if that is known beforehand.
  """

  launcher: str
  address: str | None = None
  count: int | None = None
  index: int | None = None
  roll: str | None = None


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
    return _slurm(env)  # a step of srun; an salloc shell is on its own
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
  roll = f"{host}:{int(port) + 1}"
  return Launch(
    launcher="environment", address=address, count=count, index=index, roll=roll
  )


def _slurm(env: Mapping[str, str]) -> Launch:
  """Returns how to call the roll of a Slurm step; JAX finds the rest by itself."""
  index, job = env.get("SLURM_PROCID", ""), env.get("SLURM_JOB_ID", "")
  # "node[001-004,9],other", "node1,node2": the first is the host of process 0.
  first = re.match(r"([^,\[]+)(?:\[(\w+))?", env["SLURM_STEP_NODELIST"])
  if not index.isdecimal() or not job.isdecimal() or first is None:
    return Launch(launcher="slurm")
  return Launch(
    launcher="slurm",
    count=int(env["SLURM_NTASKS"]),
    index=int(index),
    roll=f"{first[1]}{first[2] or ''}:{_SLURM_PORTS + int(job) % 4096}",
  )


def _above_one(env: Mapping[str, str], key: str) -> bool:
  return env.get(key, "1").isdecimal() and int(env.get(key, "1")) > 1


def _has_tpu() -> bool:
  chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
  return bool(chips) and importlib.util.find_spec("libtpu") is not None
