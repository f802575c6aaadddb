"""One life of a run: train.py as a process, disturbed at a planned moment, watched."""

import dataclasses
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

from training import parameters

ROOT = pathlib.Path(__file__).resolve().parents[1]
POLL = 0.002  # seconds
SAVE = 0.3  # seconds, within which a kill is to hit a save
PATIENCE = 900  # seconds without a new step, after which something hangs
TEMPORARY = "*.orbax-checkpoint-tmp"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """When and how a life is disturbed.

  Attributes:
    mode: "kill" | "sigterm" | "corrupt" | "full".
    steps: after so many steps of this life, unless `seconds` is set.
    seconds: after the start of the process.
    saving: then wait until a checkpoint is being written.
    fraction: of the time that a step, or a save, takes: how far into it.
  """

  mode: str
  steps: int
  seconds: float | None
  saving: bool
  fraction: float


@dataclasses.dataclass
class Life:
  """What became of one process.

  Attributes:
    started: the step that it went on from.
    reached: the last step whose loss it logged.
    seconds: it lived.
    to_first_step: seconds from its start to its first step; None: it took none.
    stepping: seconds from its first step to its last.
    status: its exit status; negative: the signal.
    disturbed: whether by us.
    in_a_save: whether it left an unfinished checkpoint.
    went_back: damaged checkpoints that it set aside.
    saves_failed: of which it told.
    done: whether the run is complete.
    note: the damage done to its checkpoints afterwards.
    tail: the end of what it wrote to stderr.
  """

  started: int = 0
  reached: int = 0
  seconds: float = 0.0
  to_first_step: float | None = None
  stepping: float = 0.0
  status: int = 0
  disturbed: bool = False
  in_a_save: bool = False
  went_back: int = 0
  saves_failed: int = 0
  done: bool = False
  note: str = ""
  tail: str = ""

  def __str__(self):
    where = " in a save" if self.in_a_save else ""
    back = f", {self.went_back} damaged found" if self.went_back else ""
    failed = f", {self.saves_failed} saves failed" if self.saves_failed else ""
    return (
      f"steps {self.started} to {self.reached}, {self.seconds:.1f} s, status "
      f"{self.status}{where}{back}{failed} {self.note}"
    )


class Runner:
  """Starts train.py in one workdir, as often as asked."""

  def __init__(
    self, workdir: pathlib.Path, flags: list[str], cache: pathlib.Path | None = None
  ):
    self.workdir = workdir
    self.checkpoints = workdir / "checkpoints"
    self._command = [sys.executable, "train.py", f"--workdir={workdir}", *flags]
    defaults = {
      "JAX_COMPILATION_CACHE_DIR": str(cache or workdir / "cache"),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    self._environment = defaults | os.environ
    self._damaged: tuple[int, int] | None = None

  def live(self, plan: Plan | None) -> Life:
    """Runs one process to its end, which the plan brings about.

    Raises:
      RuntimeError: it ended otherwise than planned, or took no step for long.
    """
    began = time.monotonic()
    process = subprocess.Popen(
      self._command,
      cwd=ROOT,
      env=self._environment,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
      errors="replace",
    )
    assert process.stderr is not None
    heard: list[str] = []
    listener = threading.Thread(target=heard.extend, args=(process.stderr,))
    listener.start()
    life = Life()
    watch = _Watch(self.workdir, process, heard, began)
    try:
      if plan is not None and self._reached(plan, watch):
        self._strike(plan, process)
        life.disturbed = True
      watch.until(lambda: False)
    finally:
      process.kill()
      process.wait()
      listener.join()
      process.stderr.close()
    self._fill(life, watch, heard, began)
    self._check(life, plan)
    return life

  def damage(self, rng: np.random.Generator) -> str:
    """Damages the newest checkpoint, if there is a whole one before it; says how."""
    steps = parameters.steps_in(self.checkpoints)
    folder = pathlib.Path(steps[max(steps)]) if steps else None
    # One that no process has met yet is damage enough.
    if folder is None or len(steps) < 2 or self._damaged == _identity(folder):
      return ""
    self._damaged = _identity(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.parent != folder)
    sizes = np.array([p.stat().st_size for p in files], float)
    # Half of the time by size, as bits rot; else any file.
    weights = sizes / sizes.sum() if rng.random() < 0.5 else None
    path = files[int(rng.choice(len(files), p=weights))]
    data, how = bytearray(path.read_bytes()), int(rng.integers(4))
    name = f"{folder.name}/{path.relative_to(folder)}"
    if how == 0 or not data:
      path.unlink()
      return f"{name} deleted"
    if how == 1:
      path.write_bytes(data[: int(rng.integers(len(data)))])
      return f"{name} cut short"
    bits = 1 if how == 2 else int(rng.integers(2, 9))
    for bit in rng.choice(8 * len(data), bits, replace=False):
      data[bit // 8] ^= 1 << (bit % 8)
    path.write_bytes(data)
    return f"{name}: {bits} bits flipped"

  def _reached(self, plan: Plan, watch: "_Watch") -> bool:
    """Waits for the planned moment; False: the process ended before it."""
    if plan.seconds is not None:
      return watch.until(lambda: watch.elapsed() >= plan.seconds)
    watch.until(lambda: watch.started is not None)
    target = (watch.started or 0) + plan.steps
    if not watch.until(
      lambda: watch.step > (watch.started or 0) and watch.step >= target
    ):
      return False
    span = 0.05
    if plan.saving:
      if not watch.until(lambda: any(self.checkpoints.glob(TEMPORARY))):
        return False
      span = SAVE
    time.sleep(plan.fraction * span)
    return watch.running()

  def _strike(self, plan: Plan, process: subprocess.Popen) -> None:
    if plan.mode == "full":  # no file may grow, as if there were no room
      _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
      resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1, hard))
      time.sleep(1 + 2 * plan.fraction)
      resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    else:
      gentle = plan.mode == "sigterm"
      process.send_signal(signal.SIGTERM if gentle else signal.SIGKILL)

  def _fill(self, life: Life, watch: "_Watch", heard: list[str], began: float) -> None:
    text = "".join(heard)
    life.status, life.seconds = watch.process.returncode, time.monotonic() - began
    life.started = watch.started or 0
    life.reached = max(life.started, watch.look())
    if watch.first is not None:
      life.to_first_step = watch.first - began
      life.stepping = watch.last - watch.first
    life.in_a_save = any(self.checkpoints.glob(TEMPORARY))
    life.went_back = text.count("is damaged (")
    life.saves_failed = text.count("was not saved: ")
    life.done = life.status == 0 and "stopped at step" not in text
    life.tail = text[-3000:]

  def _check(self, life: Life, plan: Plan | None) -> None:
    wanted = {0}
    if life.disturbed and plan is not None and plan.mode in ("kill", "corrupt"):
      wanted = {-signal.SIGKILL}
    if life.status not in wanted:
      raise RuntimeError(f"a life ended with status {life.status}:\n{life.tail}")


class _Watch:
  """Follows a process by what it says and logs."""

  def __init__(self, workdir, process, heard: list[str], began: float):
    self.process = process
    self.started: int | None = None  # the step it goes on from, once it has told
    self.step = 0
    self.first: float | None = None
    self.last = 0.0
    self._path, self._heard, self._began = workdir / "metrics.jsonl", heard, began
    self._seen = 0

  def elapsed(self) -> float:
    return time.monotonic() - self._began

  def running(self) -> bool:
    return self.process.poll() is None

  def until(self, ready) -> bool:
    """Waits until `ready()`; False: the process ended first."""
    stirred = time.monotonic()
    while self.running():
      if self.look() > 0 and self.last > stirred:
        stirred = self.last
      if ready():
        return True
      if time.monotonic() - stirred > PATIENCE:
        raise RuntimeError("no step for long:\n" + "".join(self._heard)[-3000:])
      time.sleep(POLL)
    return False

  def look(self) -> int:
    """Returns the last step that was logged in this life, 0 before the first."""
    for line in self._heard[self._seen :]:
      self._seen += 1
      if line.startswith("resuming from step "):
        self.started = int(line.split()[3])
      elif line.startswith("initialising"):
        self.started = 0
    if self.started is not None and any(x.startswith("compiled") for x in self._heard):
      step = last_step(self._path)
      if step > max(self.step, self.started):
        self.step, self.last = step, time.monotonic()
        self.first = self.first or self.last
    return self.step


def _identity(folder: pathlib.Path) -> tuple[int, int]:
  """Returns what tells a folder from a later one of its name."""
  status = folder.stat()
  return status.st_dev, status.st_ino


def last_step(path: pathlib.Path) -> int:
  """Returns the step of the last whole line of metrics.jsonl, 0 without one."""
  if not path.exists():
    return 0
  with path.open("rb") as file:
    file.seek(max(0, path.stat().st_size - 20_000))
    lines = file.read().split(b"\n")
  for line in reversed(lines[:-1]):
    try:
      return int(json.loads(line)["step"])
    except (ValueError, KeyError):
      continue
  return 0


def losses(workdir: pathlib.Path) -> dict[int, str]:
  """Returns step -> loss of a run, in digits: equal ones are equal bit by bit."""
  found: dict[int, Any] = {}
  for line in (workdir / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    if set(row) == {"step", "loss"}:
      found[row["step"]] = repr(row["loss"])
  return found
