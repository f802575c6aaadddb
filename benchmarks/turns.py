"""Contenders of a benchmark take turns; what they took is summed up with its spread.

Each turn is a few steps. The order is reversed every round, so that a busy minute of
the machine, or a warm one of the card, hits all alike, and ratios are taken round by
round before they are summed up. Nothing here imports JAX: a peer does without it.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import pathlib
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from typing import Any, NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Seconds(NamedTuple):
  """What one step of a turn took.

  Attributes:
    wall: by the clock.
    cpu: of all threads of the process: on a shared core, without the others' turns.
  """

  wall: float
  cpu: float


Turn = Callable[[], Seconds]
Step = Callable[[], Callable[[], Any]]  # starts a step, returns what waits for its end


def interleave(turns: Mapping[str, Turn], rounds: int) -> dict[str, list[Seconds]]:
  """Returns name -> what a step took in each round; a round before them warms up."""
  times: dict[str, list[Seconds]] = {name: [] for name in turns}
  for i in range(rounds + 1):
    for name in list(turns)[:: 1 if i % 2 else -1]:
      seconds = turns[name]()
      if i:
        times[name].append(seconds)
  return times


def spread(values: Sequence[float], digits: int = 4) -> dict[str, float]:
  """Returns median, quartiles and extremes; a single value is all of them."""
  many = list(values) if len(values) > 1 else [values[0]] * 2
  low, median, high = statistics.quantiles(many, n=4, method="inclusive")
  found = dict(median=median, q1=low, q3=high, min=min(many), max=max(many))
  return {key: round(value, digits) for key, value in found.items()}


def summary(times: Sequence[Seconds]) -> dict[str, dict[str, float]]:
  """Returns the spreads of `seconds` and `cpu_seconds`."""
  return dict(
    seconds=spread([t.wall for t in times]), cpu_seconds=spread([t.cpu for t in times])
  )


def ratios(times: Sequence[Seconds], base: Sequence[Seconds]) -> dict[str, Any]:
  """Returns the spreads of times / base, taken round by round, of wall and CPU time."""
  pairs = list(zip(times, base, strict=True))
  return dict(
    seconds=spread([t.wall / b.wall for t, b in pairs], 3),
    cpu_seconds=spread([t.cpu / b.cpu for t, b in pairs], 3),
  )


def rated(
  facts: Mapping[str, Any],
  times: Sequence[Seconds],
  batch: int,
  device: Mapping[str, Any],
  ceiling: float,
) -> dict[str, Any]:
  """Returns a contender's facts with what its steps took, and the rates of the median.

  Args:
    facts: with `gflops_per_example`, of forward and backward pass.
    times: of its steps.
    batch: examples of a step.
    device: `cores` in use if it is a CPU, else 0, when the clock counts; and perhaps
      `data_sheet_tflops`.
    ceiling: FLOP/s of a large product of matrices.
  """
  took = summary(times)
  seconds = took["seconds"]["median"]
  if device["cores"]:  # others may use the cores too
    seconds = took["cpu_seconds"]["median"] / device["cores"]
  achieved = facts["gflops_per_example"] * batch / seconds / 1e3
  rates = dict(
    examples_per_second=round(batch / seconds, 2),
    achieved_tflops=round(achieved, 4),
    share_of_matmul=round(achieved * 1e12 / ceiling, 3),
  )
  if "data_sheet_tflops" in device:
    rates["mfu"] = round(achieved / device["data_sheet_tflops"], 3)
  return {**facts, **took, **rates}


def line(name: str, row: Mapping[str, Any]) -> str:
  """Returns what `rated` found, for the terminal."""
  s = row["seconds"]
  return (
    f"{name:9} {s['median']:.4f} s a step (quartiles {s['q1']:.4f} to {s['q3']:.4f}; "
    f"CPU {row['cpu_seconds']['median']:.4f} s), {row['examples_per_second']:.1f} "
    f"examples/s, {row['achieved_tflops']:.3f} TFLOP/s = {row['share_of_matmul']:.0%} "
    "of a matmul's"
  )


def pin(threads: int) -> None:
  """Keeps this process to the first `threads` of the cores that it may use; 0: all.

  Before JAX or torch start: both make as many threads as they see cores.
  """
  if threads and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def cores() -> int:
  """Returns how many cores this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def processor() -> str:
  """Returns the CPU's own name where the system tells it, else its architecture."""
  info = pathlib.Path("/proc/cpuinfo")
  found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
  return found.group(1) if found else platform.machine()


def versions(packages: Sequence[str]) -> str:
  """Returns the versions of Python and of some installed packages."""
  found = [f"{p} {importlib.metadata.version(p)}" for p in packages]
  return ", ".join([f"Python {platform.python_version()}", *found])


def load() -> float | None:
  """Returns how many processes wanted a core in the last minute, if that is known."""
  return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def command(module: str, words: Sequence[str] | None) -> str:
  """Returns the line that runs `python -m module` with these arguments again."""
  given = sys.argv[1:] if words is None else words
  return " ".join([f"python -m {module}", *map(shlex.quote, given)])


def write(path: str | None, report: Mapping[str, Any]) -> None:
  """Writes a report as JSON, if a path was given."""
  if not path:
    return
  file = pathlib.Path(path)
  file.parent.mkdir(parents=True, exist_ok=True)
  file.write_text(json.dumps(report, indent=1) + "\n")
  print(f"wrote {file}")


class Worker:
  """A contender in a process of its own, which waits while others take their turns.

  Two frameworks in one process would share an allocator, and their thread pools would
  spin against each other. A process that waits to read a line costs nothing.

  Attributes:
    facts: what it said about itself when it was ready.
  """

  def __init__(self, module: str, settings: Mapping[str, Any]):
    """Starts `python -m module` with the settings, and waits until it has compiled.

    Raises:
      RuntimeError: it ended instead; its messages are on stderr.
    """
    self._module = module
    self._process = subprocess.Popen(
      [sys.executable, "-m", module, json.dumps(settings)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      cwd=ROOT,
    )
    try:
      self.facts = self._read()
    except BaseException:
      self.kill()
      raise

  def turn(self, steps: int) -> Seconds:
    """Lets it run `steps` steps; returns what one took."""
    return Seconds(**self._ask(steps))

  def close(self) -> dict[str, Any]:
    """Ends it; returns what it says at the end."""
    return self._ask(0)

  def kill(self) -> None:
    """Ends it at once, if it still runs."""
    self._process.kill()
    self._process.communicate()  # closes the pipes, too

  def _ask(self, steps: int) -> dict[str, Any]:
    assert self._process.stdin is not None
    # Whoever has died cannot be written to; its status says more than a broken pipe.
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.write(f"{steps}\n")
      self._process.stdin.flush()
    return self._read()

  def _read(self) -> dict[str, Any]:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise RuntimeError(
        f"{self._module} ended with status {self._process.wait()} instead of an "
        "answer: see its messages above"
      )
    return json.loads(line)


def serve(prepare: Callable[[dict[str, Any]], tuple[dict, Step, Callable]]) -> None:
  """Is a `Worker`'s other end: prepares, then takes turns until it is told 0.

  Args:
    prepare: settings -> (facts, step, last): what is known beforehand, a function that
      starts a step and returns a function that waits for it, and one that returns what
      is known at the end.
  """
  settings = json.loads(sys.argv[1])
  # Only answers go to stdout, whatever the libraries print.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)

  def answer(value: Mapping[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()

  pin(settings["threads"])
  facts, step, last = prepare(settings)
  answer(facts)
  for line in sys.stdin:
    steps = int(line)
    if not steps:
      break
    answer(clocked(step, steps, settings.get("warm", 0))._asdict())
  answer(last())


def clocked(step: Step, steps: int, warm: int = 0) -> Seconds:
  """Returns what one of `steps` steps took, having waited for the last one's end.

  Args:
    step: to be timed.
    steps: of the turn.
    warm: steps before them, for whoever works ahead while others take their turns.
  """
  for _ in range(warm):
    step()()
  wall, cpu = time.perf_counter(), cpu_seconds()
  for _ in range(steps):
    wait = step()
  wait()
  wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
  return Seconds(wall / steps, cpu / steps)


def cpu_seconds() -> float:
  """Returns the CPU time of this process and of those that it runs as its workers."""
  workers = [p.pid for p in multiprocessing.active_children() if p.pid]
  # The clock of another process (Linux: clock_getcpuclockid(3)).
  return time.process_time() + sum(time.clock_gettime(~pid << 3 | 2) for pid in workers)


def best(step: Step, cpu: bool, rounds: int = 5) -> float:
  """Returns the seconds of the fastest of `rounds` turns of 3 steps, after a warm-up.

  For the ceiling of a device as it is now, a product of two large matrices: what a data
  sheet promises depends on clocks and cooling, and there is none for one core.

  Args:
    step: what to time.
    cpu: time of the process on one core, so that others who use it do not count.
    rounds: turns.
  """
  clocked(step, 1)
  times = [clocked(step, 3) for _ in range(rounds)]
  return min(t.cpu / cores() if cpu else t.wall for t in times)
