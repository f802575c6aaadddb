"""A claim: arms x seeds, measured run by run, then judged; finished runs are kept."""

from collections.abc import Callable, Mapping
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import statistics
import sys
import time
from typing import Any

from matplotlib.figure import Figure

from benchmarks.claims.shared import verdict
from training import environment


@dataclasses.dataclass(frozen=True)
class Measured:
  """What one run gave.

  Attributes:
    figures: metric -> value; what rules and tables are made of.
    arrays: name -> nested lists, such as curves and matrices, for the plot.
  """

  figures: Mapping[str, float]
  arrays: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Claim:
  """One method's claims in miniature.

  Attributes:
    title: of the page and the plot.
    source: the paper, as an arXiv id or an address.
    about: what is trained on what, in a few sentences.
    legend: what the columns of the table mean.
    arms: name -> what it is; the baselines are among them.
    seeds: three or more; an arm's run on a seed is compared with another arm's on it.
    settings: (arm, seed) -> everything that decides a run, as a ConfigDict or a mapping
      that JSON can hold; the arms of a seed differ in `varies` only.
    varies: the dotted keys of the settings that may differ between arms.
    measure: (settings, workdir) -> Measured. The workdir is a folder of its own.
    statements: what the paper says, with the rules, fixed before the run.
    columns: (metric, heading) of the table.
    draw: from what `collect` returns, the one plot.
    choice: how the setting was chosen: its "aim", and what was tried, "pilots".
  """

  title: str
  source: str
  about: str
  legend: str
  arms: Mapping[str, str]
  seeds: tuple[int, ...]
  settings: Callable[[str, int], Any]
  varies: tuple[str, ...]
  measure: Callable[[Any, str], Measured]
  statements: tuple[verdict.Statement, ...]
  columns: tuple[tuple[str, str], ...]
  draw: Callable[[Mapping[str, Any]], Figure]
  choice: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def run(claim: Claim, folder: pathlib.Path, say=print) -> list[dict[str, Any]]:
  """Runs each arm on each seed that is not done yet; returns the records of all.

  `folder` keeps one JSON per run, so that an interrupted sweep goes on where it was. A
  record of other settings is not reused but run again. Seed by seed, so that whenever
  it stops, the seeds that are there are whole.
  """
  folder.mkdir(parents=True, exist_ok=True)
  records = []
  for seed in claim.seeds:
    for arm in claim.arms:
      path = folder / f"{arm}_{seed}.json"
      settings = claim.settings(arm, seed)
      own = digest(settings)
      record = json.loads(path.read_text()) if path.exists() else {}
      if record.get("digest") != own:
        say(f"{arm}, seed {seed} ...")
        record = _one(claim, settings, folder / f"{arm}_{seed}")
        record |= {"arm": arm, "seed": seed, "digest": own}
        _write(path, record)
      records.append(record)
  return records


def collect(claim: Claim, records: list[dict[str, Any]], key: str) -> dict[str, Any]:
  """Returns what is committed: the runs, mean and deviation, and the verdicts.

  Raises:
    ValueError: a rule about what was not measured; see `verdict.decide`.
  """
  figures: dict[str, dict[int, Mapping[str, float]]] = {}
  for r in records:
    figures.setdefault(r["arm"], {})[r["seed"]] = r["figures"]
  kept = ("arm", "seed", "digest", "seconds", "made", "figures", "arrays")
  return {
    "key": key,
    "title": claim.title,
    "command": f"python -m benchmarks.claims {key}",
    "source": claim.source,
    "about": claim.about,
    "legend": claim.legend,
    "arms": dict(claim.arms),
    "seeds": sorted({r["seed"] for r in records}),
    "confidence": verdict.CONFIDENCE,
    "statements": [verdict.judge(s, figures) for s in claim.statements],
    "summary": {arm: _summary(list(by.values())) for arm, by in figures.items()},
    "columns": [list(c) for c in claim.columns],
    "choice": dict(claim.choice),
    "runs": [{k: r[k] for k in kept} for r in records],
  }


def flat(settings: Any, head: str = "") -> dict[str, Any]:
  """Returns {"a.b.c": leaf} of nested mappings; what is no mapping is a leaf."""
  out = {}
  for name, value in settings.items():
    path = f"{head}{name}"
    nested = hasattr(value, "items") and len(value)
    out.update(flat(value, f"{path}.") if nested else {path: value})
  return out


def _one(claim: Claim, settings: Any, workdir: pathlib.Path) -> dict[str, Any]:
  # Whatever an interrupted run left belongs to it, and perhaps to other settings.
  shutil.rmtree(workdir, ignore_errors=True)
  workdir.mkdir(parents=True)
  started = time.monotonic()
  measured = claim.measure(settings, str(workdir))
  shutil.rmtree(workdir)
  return {
    "figures": {k: float(v) for k, v in measured.figures.items()},
    "arrays": dict(measured.arrays),
    "seconds": round(time.monotonic() - started, 1),
    "made": {k: v for k, v in environment.describe().items() if k != "command"},
  }


def _summary(figures: list[Mapping[str, float]]) -> dict[str, dict[str, float]]:
  out = {}
  for name in sorted(set.intersection(*(set(f) for f in figures))):
    values = [f[name] for f in figures]
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    out[name] = {"mean": statistics.fmean(values), "deviation": deviation}
  return out


def digest(settings: Any) -> str:
  """Returns what tells the settings of a run from any others."""
  text = json.dumps(flat(settings), sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def _write(path: pathlib.Path, record: Mapping[str, Any]) -> None:
  # Through a second file: a kill while writing must not leave half a record.
  new = path.with_suffix(f".{os.getpid()}.new")
  new.write_text(json.dumps(record, indent=1) + "\n")
  new.replace(path)


def say_to_stderr(text: str) -> None:
  """Prints progress where it does not mix with results."""
  print(text, file=sys.stderr, flush=True)
