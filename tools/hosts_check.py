"""Several processes on this machine: train.py trains, resumes, loses hosts, for real.

python -m tools.hosts_check --out docs/results/reliability/hosts.json --repeats 3

Each check starts train.py as 2 to 4 CPU processes that meet over TCP, as hosts do, on
the smallest emoji recipe (requirements-demo.txt), and raises `Failed` where what
docs/reliability.md promises does not hold. tests/tools/test_hosts_check.py runs them.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import functools
import json
import os
import pathlib
import signal
import socket
import statistics
import sys
import tempfile
import time

import numpy as np

from tools.hosts_run import Failed, Hosts, started, wait_for
from training import environment, metrics

LOST = 75  # what sharding/watch.py exits with; a copy: the outcome is the contract
WORDS = "red green blue round plain small large old new wooden glass paper stone"
EVALUATORS = (
  ("retrieval", 4, {"split": "test"}),
  ("zero_shot", 0, {"labels": ("group",)}),
  ("routing", 0, {"split": "test"}),
)
# train.py, with what each host got from its evaluators written beside the run.
RECORDING = """
import json, pathlib, runpy, jax
from training import evaluation
run = evaluation.Scheduled.run
def recorded(self, params, step):
  results = run(self, params, step)
  path = pathlib.Path("{folder}", f"host{jax.process_index()}.jsonl")
  with path.open("a") as f:
    kept = {k: v for k, v in results.items() if not k.endswith("seconds")}
    f.write(json.dumps({"step": step, **kept}) + "\\n")
  return results
evaluation.Scheduled.run = recorded
runpy.run_path("train.py", run_name="__main__")
"""


@dataclasses.dataclass(frozen=True)
class Row:
  """One line of the table: what was done, how many times, and what came out."""

  what: str
  times: int
  outcome: str


def losses(folder: pathlib.Path) -> dict[int, float]:
  """Returns step -> loss of folder/run."""
  rows = metrics.read(str(folder / "run"))
  return {row["step"]: row["loss"] for row in rows if set(row) == {"step", "loss"}}


def changing(folder: pathlib.Path, repeats: int) -> Row:
  """A run on 2, then 4, then 1 processes is the run that one process makes."""
  del repeats
  flags = (
    "--config.checkpoint.every=4",
    "--config.optimizer.schedule=constant",
    f"--config.evaluators={EVALUATORS}",
  )
  at, whole = folder / "changing", folder / "whole"
  expected = recorded(whole, 1, *flags, "--config.total_steps=12")
  names = 0
  for i, count in enumerate((2, 4, 1)):
    total = 4 * (i + 1)
    got = recorded(at, count, *flags, f"--config.total_steps={total}")
    # zero_shot and routing run at the end only: what both runs have is compared.
    close(got[total], expected[total])
    names = max(names, len(got[total].keys() & expected[total].keys()))
  saved = sorted(p.name for p in (at / "run" / "checkpoints").glob("step_*"))
  if saved != ["step_00000008", "step_00000012"]:
    raise Failed(f"saved {saved}")
  here, there = losses(at), losses(whole)
  if sorted(here) != sorted(there) or sorted(here) != list(range(1, 13)):
    raise Failed(f"steps {sorted(here)} and {sorted(there)}")
  worst = max(abs(here[s] - there[s]) / abs(there[s]) for s in there)
  if worst > 1e-5:
    raise Failed(f"losses differ by {worst:.1e} after the changes")
  return Row(
    "train, evaluate and save on 2 processes, resume on 4, then on 1; 4 devices",
    2,
    f"every host got the same figures; all {names} of the evaluators within 1e-5, and "
    f"all 12 losses within {worst:.0e}, of a run on one process",
  )


def recorded(folder: pathlib.Path, count: int, *flags: str) -> dict[int, dict]:
  """Trains; returns step -> what the evaluators found, the same on every host."""
  for old in folder.glob("host*.jsonl"):
    old.unlink()
  code = RECORDING.replace("{folder}", str(folder))
  resumes = (folder / "run" / "checkpoints").exists()
  with started(folder, count, *flags, code=code) as hosts:
    hosts.well()
    if resumes and "resuming from step" not in hosts.log(0):
      raise Failed(f"{count} processes did not resume:\n{hosts.log(0)[-2000:]}")
  texts = [p.read_text() for p in folder.glob("host*.jsonl")]
  if len(texts) != count or len(set(texts)) != 1:
    raise Failed(f"{count} hosts got {len(set(texts))} different figures:\n{texts}")
  found: dict[int, dict] = {}
  for line in texts[0].splitlines():
    row = json.loads(line)
    found.setdefault(row.pop("step"), {}).update(row)
  return found


def close(got: dict, expected: dict) -> None:
  """Raises `Failed` for a figure of both that differs by more than 1e-5."""
  shared = got.keys() & expected.keys()
  if not shared:
    raise Failed(f"nothing in common: {sorted(got)} and {sorted(expected)}")
  for name in shared:
    if not np.isclose(got[name], expected[name], rtol=0, atol=1e-5, equal_nan=True):
      raise Failed(f"{name} is {got[name]}, expected {expected[name]}")


def killed(folder: pathlib.Path, repeats: int) -> Row:
  """kill -9 of a host that is not process 0."""
  return _losing(folder, repeats, 4, 2, signal.SIGKILL, "its connection closed")


def killed_first(folder: pathlib.Path, repeats: int) -> Row:
  """kill -9 of process 0, which JAX's service and the watch live in."""
  return _losing(folder, repeats, 2, 0, signal.SIGKILL, "its connection closed")


def silent(folder: pathlib.Path, repeats: int) -> Row:
  """A host that stands still, as without power or network: its connection stays."""
  return _losing(folder, repeats, 2, 1, signal.SIGSTOP, "it was silent for 10 s")


def _losing(folder, repeats, count, victim, number, why) -> Row:
  seconds = []
  endless = ("--config.total_steps=100000", "--config.optimizer.schedule=constant")
  name = f"process {victim} of {count} ({socket.gethostname()})"
  for i in range(repeats):
    at = folder / str(i)
    with started(at, count, *endless, "--config.hosts.lost_s=10") as hosts:
      wait_for(functools.partial(_trains, at), hosts)
      os.kill(hosts.processes[victim].pid, number)
      began = time.monotonic()
      others = [p for j, p in enumerate(hosts.processes) if j != victim]
      Hosts(others, [f for j, f in enumerate(hosts.logs) if j != victim]).ended(120)
      seconds.append(time.monotonic() - began)
      for j, process in enumerate(hosts.processes):
        last = hosts.log(j).rstrip().splitlines()[-1] if j != victim else ""
        if j != victim and (
          process.returncode != LOST or f"error: {name} was lost: {why}" not in last
        ):
          raise Failed(f"process {j} ended with {process.returncode}: {last}")
  how = {
    signal.SIGKILL: "kill -9",
    signal.SIGSTOP: "SIGSTOP (config.hosts.lost_s = 10)",
  }
  return Row(
    f"{how[number]} of process {victim} of {count} while training",
    repeats,
    f"all others named it and ended with status {LOST} after {spread(seconds)}",
  )


def _trains(folder: pathlib.Path) -> bool:
  return len(losses(folder)) >= 4


def never_joined(folder: pathlib.Path, repeats: int) -> Row:
  """Two of three hosts start."""
  seconds = []
  for i in range(repeats):
    began = time.monotonic()
    with started(folder / str(i), 2, "--config.hosts.join_s=10", of=3) as hosts:
      statuses = hosts.ended(120)
      seconds.append(time.monotonic() - began)
      for j in range(2):
        last = hosts.log(j).rstrip().splitlines()[-1]
        if not last.startswith("error: process 2 of 3 never joined"):
          raise Failed(f"process {j}: {hosts.log(j)[-2000:]}")
      if set(statuses) != {LOST}:
        raise Failed(f"exit statuses {statuses}")
  return Row(
    "process 2 of 3 never starts (config.hosts.join_s = 10)",
    repeats,
    f"both others named it and ended with status {LOST} after {spread(seconds)}, start "
    "of the interpreter included",
  )


def one_fails(folder: pathlib.Path, repeats: int) -> Row:
  """An error that one host alone meets must not leave the other in a collective."""
  seconds = []
  for i in range(repeats):
    began = time.monotonic()
    only = {1: ("--config.data.source=nosuch",)}
    with started(folder / str(i), 2, only=only) as hosts:
      statuses = hosts.ended(300)
      seconds.append(time.monotonic() - began)
      if statuses != [2, 2] or "error: process 1 of 2" not in hosts.log(0):
        raise Failed(f"exit statuses {statuses}:\n{hosts.log(0)[-2000:]}")
  return Row(
    "one host of 2 cannot read its data",
    repeats,
    "the other ended with its error and its status 2, "
    f"{spread(seconds)} after the start",
  )


def uneven(folder: pathlib.Path, repeats: int) -> Row:
  """A split with fewer examples than processes, and one that no batch divides."""
  del repeats
  write_pairs(folder / "pairs", train=13, test=3)
  options = {"paths": f"{folder}/pairs/{{split}}.jsonl"}
  flags = (
    "--config.data.source=jsonl",
    f"--config.data.options={options}",
    "--config.batch_size=32",
    "--config.model.modalities.text.vocab=290",
    f"--config.evaluators={(EVALUATORS[0],)}",
  )
  one, four = (recorded(folder / f"of{n}", n, *flags) for n in (1, 4))
  close(four[max(four)], one[max(one)])
  return Row(
    "13 training and 3 test examples on 4 processes, batch 32",
    1,
    "no hang; every host got the metrics of one process",
  )


def write_pairs(folder: pathlib.Path, **splits: int) -> None:
  """Writes JSON-lines with images of one colour each."""
  from PIL import Image

  folder.mkdir(parents=True)
  names = WORDS.split()
  for split, count in splits.items():
    lines = []
    for i in range(count):
      Image.new("RGB", (32, 32), (i * 15, 255 - i * 15, i * 7)).save(
        folder / f"{split}{i}.png"
      )
      words = [names[i * k % len(names)] for k in (1, 5, 7)]
      caption = "a {} {} box on the {} table, no. {}".format(*words, i)
      lines.append(json.dumps({"image": f"{split}{i}.png", "caption": caption}))
    (folder / f"{split}.jsonl").write_text("\n".join(lines))


def spread(seconds: Sequence[float]) -> str:
  """Returns "1.2 s (1.0 to 1.5)": the median, least and most."""
  median = statistics.median(seconds)
  return f"{median:.1f} s ({min(seconds):.1f} to {max(seconds):.1f})"


CHECKS = (
  changing,
  uneven,
  killed,
  killed_first,
  silent,
  never_joined,
  one_fails,
)


def write(out: pathlib.Path, rows: Sequence[dict]) -> None:
  """Writes the rows, with the command; those of the file not made anew stay."""
  record = environment.describe()
  command = record["command"].replace("hosts_check.py", "-m tools.hosts_check")
  rows = [{**row, "command": command} for row in rows]
  kept: list[dict] = []
  if out.exists():
    old = json.loads(out.read_text())
    new = {row["what"] for row in rows}
    kept = [r for r in old["rows"] if r["what"] not in new]
    kept = [r for r in kept if not r["outcome"].startswith("FAILED")]
  out.parent.mkdir(parents=True, exist_ok=True)
  made = {"rows": [*kept, *rows], **record, "command": command}
  out.write_text(json.dumps(made, indent=1) + "\n")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the checks; returns 0 if all of them hold."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  names = [check.__name__ for check in CHECKS]
  parser.add_argument("--only", nargs="*", default=names, choices=names)
  parser.add_argument("--repeats", type=int, default=3, help="of each loss of a host")
  parser.add_argument("--out", help="a JSON file")
  args = parser.parse_args(argv)
  rows, failed = [], False
  for check in CHECKS:
    if check.__name__ not in args.only:
      continue
    with tempfile.TemporaryDirectory() as folder:
      try:
        row = check(pathlib.Path(folder), args.repeats)
      except (Failed, AssertionError) as e:
        row, failed = Row(check.__doc__ or "", 1, f"FAILED: {e}"), True
    print(f"{row.what} | {row.times} | {row.outcome}", flush=True)
    rows.append(dataclasses.asdict(row))
  if args.out:
    write(pathlib.Path(args.out), rows)
  return int(failed)


if __name__ == "__main__":
  sys.exit(main())
