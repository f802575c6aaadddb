"""Starts train.py as several processes of this machine, which meet as hosts do."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPE = "--config=configs/limoe_emoji.py:runlocal"
SMALL = ("--config.evaluators=()", "--config.model.moe.group=8")
DEVICES = 4  # of every run, however many processes share them
LIMIT_S = 900
_CHEAP = "--xla_backend_optimization_level"
_COUNT = "--xla_force_host_platform_device_count"


class Failed(Exception):
  """What a check found instead of what it promises."""


@dataclasses.dataclass
class Hosts:
  """Running processes of one run, and the files that their stderr goes to."""

  processes: list[subprocess.Popen]
  logs: list[pathlib.Path]

  def ended(self, seconds: float = LIMIT_S) -> list[int]:
    """Returns the exit statuses once all have ended."""
    end = time.monotonic() + seconds
    for i, process in enumerate(self.processes):
      try:
        process.wait(max(end - time.monotonic(), 0.01))
      except subprocess.TimeoutExpired:
        raise Failed(f"process {i} hangs:\n{self.log(i)[-2000:]}") from None
    return [p.returncode for p in self.processes]

  def well(self) -> None:
    """Waits for all to end, with status 0."""
    for i, status in enumerate(self.ended()):
      if status:
        raise Failed(f"process {i} ended with {status}:\n{self.log(i)[-3000:]}")

  def log(self, index: int) -> str:
    """Returns what a process wrote to stderr so far."""
    return self.logs[index].read_text(errors="replace")


@contextlib.contextmanager
def started(
  folder: pathlib.Path,
  count: int,
  *flags: str,
  of: int = 0,
  only: Mapping[int, tuple[str, ...]] | None = None,
  code: str = "",
) -> Iterator[Hosts]:
  """Yields `count` processes of train.py; none of them outlives the block.

  Args:
    folder: the workdir is folder/run.
    count: of processes to start.
    *flags: of train.py, on all of them.
    of: processes that are told to meet, `count` by default.
    only: process -> flags that it alone is given.
    code: runs instead of train.py, with its flags.
  """
  of = of or count
  folder.mkdir(parents=True, exist_ok=True)
  logs = [folder / f"stderr{i}_{time.monotonic_ns()}" for i in range(count)]
  first = [sys.executable, "-c", code] if code else [sys.executable, "train.py"]
  common = [RECIPE, f"--workdir={folder / 'run'}", *SMALL, *flags]
  processes = []
  for i, env in zip(range(count), environments(of), strict=False):
    with logs[i].open("w") as log:
      arguments = [*first, *common, *(only or {}).get(i, ())]
      processes.append(
        subprocess.Popen(
          arguments, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=log
        )
      )
  try:
    yield Hosts(processes, logs)
  finally:
    for process in processes:
      process.kill()
      process.wait()


def environments(count: int) -> list[dict[str, str]]:
  """Returns the environment of each process: its share of DEVICES CPU devices."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{s.getsockname()[1]}"
  flags = os.environ.get("XLA_FLAGS", "")
  flags = re.sub(rf"{_COUNT}=\d+", "", flags)
  if _CHEAP not in flags:
    flags += f" {_CHEAP}=0"  # what is shown here is not how fast a step is
  # JAX warns of proxies, and they would not lead to this machine anyway.
  env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
  env |= {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{flags} {_COUNT}={-(-DEVICES // count)}",
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": str(count),
    "PYTHONPATH": str(ROOT),
  }
  env.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
  env.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
  # Hosts do not share their order of sets, so neither do these.
  return [
    env | {"JAX_PROCESS_ID": str(i), "PYTHONHASHSEED": str(i + 1)} for i in range(count)
  ]


def wait_for(ready: Callable[[], bool], hosts: Hosts) -> None:
  """Waits until `ready()`; a process that ends before is a failure."""
  end = time.monotonic() + LIMIT_S
  while not ready():
    for i, process in enumerate(hosts.processes):
      if process.poll() is not None:
        raise Failed(f"process {i} ended too early:\n{hosts.log(i)[-3000:]}")
    if time.monotonic() > end:
      raise Failed("nothing happened in time")
    time.sleep(0.05)
