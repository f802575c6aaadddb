"""Reads what a run left in its workdir; whatever is missing is None or empty."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import json
import pathlib
import re
from typing import Any
import zipfile

import numpy as np

Series = tuple[np.ndarray, np.ndarray]  # steps i64[t], values f64[t] or f64[t, ...]

RETRIEVAL = re.compile(
  r"^eval/(?P<name>[^/]+)/(?P<sub>without_[^/]+/)?(?P<way>[a-z]+2[a-z]+)_r1$"
)
ZERO_SHOT = re.compile(r"^eval/(?P<name>[^/]+)/(?P<label>.+)_mean_per_class$")
ROUTING = re.compile(r"^metrics/moe/(?P<layer>layer\d+)/(?P<what>\w+)/(?P<of>\w+)$")


@dataclasses.dataclass(frozen=True)
class Run:
  """A workdir, read.

  Attributes:
    path: the workdir.
    config: config.json as plain dicts, {} if absent.
    rows: of metrics.jsonl, in order of steps; of a step written twice, the later.
    artifacts: name -> arrays of artifacts/<name>.npz.
  """

  path: pathlib.Path
  config: Mapping[str, Any]
  rows: list[dict[str, Any]]
  artifacts: Mapping[str, Mapping[str, np.ndarray]]

  def get(self, key: str, default: Any = None) -> Any:
    """Returns config value at a dotted key, or the default."""
    value: Any = self.config
    for part in key.split("."):
      if not isinstance(value, Mapping) or part not in value:
        return default
      value = value[part]
    return value

  @functools.cached_property
  def keys(self) -> list[str]:
    """Returns every metric that was ever written, sorted."""
    return sorted({k for row in self.rows for k in row} - {"step"})

  def series(self, key: str) -> Series:
    """Returns (steps, values) of one metric; empty if it was never written."""
    found = [(r["step"], r[key]) for r in self.rows if r.get(key) is not None]
    if not found:
      return np.zeros(0, np.int64), np.zeros(0)
    # A resumed run may have changed the length of a list: keep those like the last.
    shape = np.shape(found[-1][1])
    found = [(s, v) for s, v in found if np.shape(v) == shape]
    steps, values = zip(*found)
    return np.asarray(steps), np.asarray(values, float)

  def last(self, key: str) -> float | None:
    """Returns the last value of a scalar metric, or None."""
    _, values = self.series(key)
    return float(values[-1]) if values.size and values.ndim == 1 else None

  @property
  def final_step(self) -> int:
    """Returns the last step written, 0 if none."""
    return max((r["step"] for r in self.rows), default=0)

  def kind(self, kind: str) -> dict[str, Mapping[str, np.ndarray]]:
    """Returns the artifacts of one kind of evaluator, by name."""
    return {
      name: a
      for name, a in sorted(self.artifacts.items())
      if str(a.get("kind")) == kind
    }

  def retrievals(self) -> dict[str, list[str]]:
    """Returns evaluator -> its directions, such as ["i2t", "t2i"]."""
    out: dict[str, list[str]] = {}
    for key in self.keys:
      if (m := RETRIEVAL.match(key)) and not m["sub"]:
        out.setdefault(m["name"], []).append(m["way"])
    return out

  def subsets(self, name: str) -> list[str]:
    """Returns the subsets of a retrieval evaluator, such as ["without_flag"]."""
    found = (RETRIEVAL.match(k) for k in self.keys)
    return sorted(
      {m["sub"][:-1] for m in found if m and m["name"] == name and m["sub"]}
    )

  def zero_shots(self) -> list[tuple[str, str]]:
    """Returns (evaluator, label) of every zero-shot classification."""
    found = (ZERO_SHOT.match(k) for k in self.keys)
    return sorted({(m["name"], m["label"]) for m in found if m})

  def routing(self, what: str) -> dict[tuple[str, str], str]:
    """Returns (layer, modality) -> metric of one routing quantity during training."""
    found = {k: ROUTING.match(k) for k in self.keys}
    return {
      (m["layer"], m["of"]): k for k, m in found.items() if m and m["what"] == what
    }

  def split(self, name: str) -> str:
    """Returns the split that an evaluator used: of its artifact, else its config."""
    if "split" in self.artifacts.get(name, {}):
      return str(self.artifacts[name]["split"])
    return self._options(name).get("split", "test")

  def source_options(self, name: str) -> dict[str, Any]:
    """Returns the changes that an evaluator made to the source's options."""
    if "source" in self.artifacts.get(name, {}):
      return json.loads(str(self.artifacts[name]["source"]))
    return dict(self._options(name).get("source") or {})

  def _options(self, name: str) -> Mapping[str, Any]:
    for file, _, options in self.get("evaluators", ()) or ():
      if options.get("name", file) == name:
        return options
    return {}


def read(workdir: str | pathlib.Path) -> Run:
  """Returns the run in a workdir.

  Raises:
    FileNotFoundError: no such folder, or nothing of a run in it.
    json.JSONDecodeError: config.json is broken.
  """
  path = pathlib.Path(workdir)
  if not path.is_dir():
    raise FileNotFoundError(f"no folder {str(path)!r}: give the --workdir of train.py")
  config = read_json(path / "config.json")
  rows = _rows(path / "metrics.jsonl")
  if not config and not rows:
    raise FileNotFoundError(
      f"{str(path)!r} has neither config.json nor metrics.jsonl: no run wrote there"
    )
  artifacts = {}
  for file in sorted((path / "artifacts").glob("*.npz")):
    try:
      with file.open("rb") as opened, np.load(opened) as arrays:
        artifacts[file.stem] = dict(arrays)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
      print(f"report: left out {file}, which a kill may have cut short: {e}")
  return Run(path, config, rows, artifacts)


def open_source(
  run: Run, split: str, options: Mapping[str, Any] | None = None
) -> Any | None:
  """Returns the raw examples of a split of the run's data, or None if they are gone."""
  from ml_collections import ConfigDict

  from input_pipeline import pipeline

  try:
    config = ConfigDict(dict(run.config))
    return pipeline.source(config, split=split, options=options)
  except Exception as e:
    print(f"report: the data of split {split!r} cannot be read: {e}")
    return None


def parameters(run: Run) -> dict[str, int]:
  """Returns {"total", "active"} parameters; {} if the model cannot be built."""
  from ml_collections import ConfigDict

  try:
    from model.encoders import count

    table = count.parameter_table(ConfigDict(dict(run.config)).model)
  except Exception as e:
    print(f"report: parameters not counted: {e}")
    return {}
  return {"total": table.total, "active": table.active}


def floors(run: Run, compute: bool) -> dict[str, dict[str, Any]]:
  """Returns retrieval evaluator -> its floor, with "title"; cached in the artifacts.

  On families held out it is the ridge on pixels, on another style of drawing the
  nearest neighbour in pixels; only the emoji have floors.
  """
  path = run.path / "artifacts" / "floors.json"
  if path.exists():
    return read_json(path)
  if not compute or run.get("data.source") != "emoji":
    return {}
  try:
    found = {name: _floor(run, name) for name in run.retrievals()}
  except ImportError as e:
    print(f"report: floors not computed: {e}; see requirements-demo.txt")
    return {}
  out = {name: floor for name, floor in found.items() if floor}
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(out, indent=1))
  return out


def _floor(run: Run, name: str) -> dict[str, Any]:
  from benchmarks import emoji_floors

  split, options = run.split(name), run.source_options(name)
  trained = run.get("data.split", "train")
  if "styles" in options:
    title = "pixel nearest neighbour"
    compute: Callable[..., dict[str, Any]] = emoji_floors.style_floor
    sources = open_source(run, trained), open_source(run, split, options)
  elif trained == "train" and split in ("validation", "test"):
    title, compute = "ridge on 24x24 pixels", emoji_floors.floors
    # Skin tones are augmentation: to the ridge they would be copies.
    plain = {"skin_tones": False, **options}
    sources = open_source(run, trained, plain), open_source(run, split, plain)
  else:
    return {}
  if None in sources:
    return {}
  print(f"report: computing the floor of {name} ({title}) ...", flush=True)
  return {"title": title, **compute(*sources)}


def results(run: Run, title: str) -> dict[str, Any]:
  """Returns {"title", "step", "metrics"}: the last evaluations, for --beside."""
  metrics = {k: run.last(k) for k in run.keys if k.startswith("eval/")}
  known = {k: v for k, v in metrics.items() if v is not None}
  return {"title": title, "step": run.final_step, "metrics": known}


def spread(value: Any) -> tuple[float, float] | None:
  """Returns (mean, sample deviation) of a number, of seeds or of {"mean", "std"}."""
  if value is None:
    return None
  if isinstance(value, Mapping):
    return float(value["mean"]), float(value.get("std", 0.0))
  values = np.asarray(value, float)
  # As tools/collect.py: of the seeds that could have been, not of those that were.
  return float(values.mean()), float(values.std(ddof=1)) if values.size > 1 else 0.0


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
  rows: dict[int, dict[str, Any]] = {}
  if not path.exists():
    return []
  for line in path.read_text().splitlines():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue  # the line that a killed process was writing
    rows.setdefault(int(row["step"]), {}).update(row)
  return [rows[step] for step in sorted(rows)]


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the JSON in a file, {} without one; an error in it names the file."""
  try:
    return json.loads(path.read_text()) if path.exists() else {}
  except json.JSONDecodeError as e:
    raise json.JSONDecodeError(f"{path} is not JSON: {e.msg}", e.doc, e.pos) from e
