"""One self-contained HTML page about a run, and its pictures as PNG files.

python -m tools.report WORKDIR [--beside results.json ...] [--results out.json]

Reads config.json, metrics.jsonl and artifacts/ of the workdir; writes
report/index.html and report/*.png there, and prints the results table.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import datetime
import json
import pathlib
import sys
from typing import Any

from matplotlib.figure import Figure

from tools import report_data as data
from tools import report_experts as experts
from tools import report_html as page
from tools import report_pictures as pictures
from tools import report_plots as plots
from tools import report_routing as routing
from tools.report_data import Run
from tools.report_html import Row
from training import environment

KS = (1, 5, 10)
DASH = "-"
Floors = Mapping[str, Mapping[str, Any]]  # by retrieval evaluator
CREDITS = {
  "emoji": "Drawings: Twemoji, © Twitter and other contributors, CC BY 4.0; in recipes "
  "of several styles also Noto Emoji, © Google, Apache 2.0, and OpenMoji, © OpenMoji, "
  "CC BY-SA 4.0.",
}


class Album:
  """The report's folder of PNG files, and the HTML that shows them."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.folder.mkdir(parents=True, exist_ok=True)

  def add(self, name: str, fig: Figure | None, alt: str, caption: str = "") -> str:
    """Saves a figure and returns its HTML; "" for None."""
    if fig is None:
      return ""
    path = self.folder / f"{name}.png"
    fig.savefig(path, facecolor="white")
    return page.picture(path, alt, caption)


def number(value: Any, digits: int = 3) -> str:
  """Returns "0.123", "0.123 ± 0.004" where seeds differ, or a dash for None."""
  spread = data.spread(value)
  if spread is None:
    return DASH
  mean, std = spread
  return f"{mean:.{digits}f}" + (f" ± {std:.{digits}f}" if std else "")


def main_retrieval(run: Run) -> str:
  """Returns the retrieval evaluator to headline: of a split that is not "train"."""
  names = list(run.retrievals())
  held_out = [n for n in names if run.split(n) != "train"]
  named = [n for n in held_out if n == "retrieval"]
  return next(iter([*named, *held_out, *names]), "")


def part(floor: Mapping[str, Any], subset: str) -> dict[str, Any]:
  """Returns the part of a floor that belongs to a subset such as "without_flag"."""
  head = f"{subset}/"
  return {k.removeprefix(head): v for k, v in floor.items() if k.startswith(head)}


def retrieval_rows(
  run: Run, floors: Floors, beside: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[Row]]:
  """Returns (head, rows) of the results table: this run, its floors, other runs."""
  main = main_retrieval(run)
  ways = run.retrievals().get(main, [])
  columns = [f"{w}_r{k}" for w in ways for k in KS]
  titles = [c.replace("_r", " R@") for c in columns]
  head = [f"Retrieval, {run.split(main)} split", *titles, "items"]
  metrics = {k: run.last(k) for k in run.keys}

  def row(title: str, values: Mapping[str, Any], at: str, floor: Mapping) -> Row:
    found = [data.spread(values.get(at + c)) for c in columns]
    pairs = [(v, floor.get(c)) for v, c in zip(found, columns)]
    wins = frozenset(i for i, (v, f) in enumerate(pairs) if v and f and v[0] > f)
    n = data.spread(values.get(f"{at}n"))
    cells = [*(number(values.get(at + c)) for c in columns), number(n and n[0], 0)]
    return Row(title, cells, "", wins)

  def results(name: str, values: Mapping[str, Any], title: str) -> list[Row]:
    at, floor = f"eval/{name}/", floors.get(name, {})
    rows = [dataclasses.replace(row(title, values, at, floor), kind="main")]
    for sub in run.subsets(name):
      named = f"{title}, {sub.replace('_', ' ')}"
      rows.append(row(named, values, f"{at}{sub}/", part(floor, sub)))
    return rows

  def below(name: str) -> list[Row]:
    floor, rows = floors.get(name, {}), []
    title = f"Floor: {floor.get('title', 'floor')}"
    if floor:
      rows.append(row(title, floor, "", {}))
    for sub in run.subsets(name):
      if part(floor, sub):
        rows.append(row(f"{title}, {sub.replace('_', ' ')}", floor, f"{sub}/", {}))
    keys = {c: f"eval/{name}/{c.replace('_r', '_chance_r')}" for c in columns}
    chance = {c: run.last(key) for c, key in keys.items()}
    rows.append(row("Floor: chance", chance, "", {}))
    return [dataclasses.replace(r, kind="floor") for r in rows]

  rows = results(main, metrics, "This run") + below(main)
  for other in beside:
    rows += results(main, other.get("metrics", {}), other.get("title", "other run"))
  for name in run.retrievals():
    if name != main:
      title = f"{name.replace('_', ' ')} ({run.split(name)} split)"
      rows += results(name, metrics, title) + (below(name) if name in floors else [])
  return head, rows


def zero_shot_rows(run: Run, floor: Mapping[str, Any]) -> tuple[list[str], list[Row]]:
  """Returns (head, rows): accuracy of each zero-shot label against its floors."""
  head = ["Zero-shot", "top-1", "top-5", "per class", "chance", "majority", "classes",
          "items"]  # fmt: skip
  rows = []
  for name, label in run.zero_shots():
    at = f"eval/{name}/{label}_"
    keys = ("top1", "top5", "mean_per_class", "chance", "majority")
    values = [run.last(at + k) for k in keys]
    beats = values[0] is not None and values[4] is not None and values[0] > values[4]
    counts = [run.last(at + k) for k in ("classes", "n")]
    cells = [*(number(v) for v in values), *(number(v, 0) for v in counts)]
    plain = name.startswith("zero_shot")
    title = label if plain else f"{label} ({name.replace('_', ' ')})"
    rows.append(Row(title, cells, "main", frozenset({0} if beats else ())))
  if rows and (probe := floor.get("probe_group")) is not None:
    rest = [DASH] * 3 + [number(floor.get("probe_group_majority"))] + [DASH] * 2
    name = "Supervised, for comparison: linear probe of the pixels, group"
    rows.append(Row(name, [number(probe), *rest], "floor"))
  return head, rows


def health_rows(run: Run) -> list[Row]:
  """Returns the shape of the embedding space, one measure a row."""
  names = ("alignment", "uniformity", "modality_gap", "effective_rank")
  rows = []
  for key in run.keys:
    parts = key.split("/")
    if len(parts) == 4 and parts[0] == "eval" and parts[2] in names:
      where = "" if parts[1] == "health" else f" ({parts[1]})"
      of = parts[3].replace("_", " and ")
      title = f"{parts[2].replace('_', ' ').capitalize()}, {of}{where}"
      rows.append(Row(title, [number(run.last(key))]))
  return rows


def headline(run: Run, floor: Mapping[str, Any]) -> str:
  """Returns the cards at the top: recall against its floor, zero-shot, experts."""
  items = []
  main = main_retrieval(run)
  for way in run.retrievals().get(main, [])[:2]:
    value, f = run.last(f"eval/{main}/{way}_r10"), floor.get(f"{way}_r10")
    if value is not None:
      against = f", floor {f:.3f}" if f is not None else ""
      name = f"{plots.words(way)} R@10{against}"
      items.append((number(value), name, f is not None and value > f))
  for name in run.retrievals():
    value = run.last(f"eval/{name}/i2t_r1")
    if name != main and run.split(name) == "train" and value is not None:
      items.append((number(value), "Image to text R@1, training images", value > 0.9))
  for name, label in run.zero_shots():
    value = run.last(f"eval/{name}/{label}_top1")
    majority = run.last(f"eval/{name}/{label}_majority")
    if value is not None and majority is not None:
      text = f"Zero-shot {label}, majority {majority:.3f}"
      items.append((number(value), text, value > majority))
  return page.cards(items)


def facts(run: Run) -> dict[str, object]:
  """Returns what was run, where and how long."""
  counts = data.parameters(run)
  made = environment.read(str(run.path))
  batch = run.get("batch_size", 0)
  out: dict[str, object] = {
    "Recipe": run.get("name", "not recorded"),
    "Steps": f"{run.final_step:,} of {run.get('total_steps', 0):,}, batch {batch:,}",
    "Parameters": "not counted",
    "Training time": training_time(run, batch),
    "Device": made.get("device", "not recorded"),
    "Versions": made.get("versions", "not recorded"),
    "Reported": f"{datetime.datetime.now():%Y-%m-%d %H:%M}",
  }
  if counts:
    million = {k: f"{v / 1e6:.2f} M" for k, v in counts.items()}
    out["Parameters"] = million["total"] + (
      f", {million['active']} active per token"
      if counts["active"] != counts["total"]
      else ""
    )
  return out


def training_time(run: Run, batch: int) -> str:
  """Returns the time of the steps, from the speeds that the run logged."""
  steps, speed = run.series("examples_per_s")
  if not len(steps) or not batch:
    return "not measured"
  spans = [b - a for a, b in zip([0, *steps[:-1]], steps)]
  seconds = sum(n * batch / s for n, s in zip(spans, speed) if s > 0)
  minutes = seconds / 60
  return f"{minutes:.1f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def zero_shot_parts(run: Run, album: Album, floor: Mapping[str, Any]) -> list[str]:
  """Returns the zero-shot table and a bar chart of each label's classes."""
  head, rows = zero_shot_rows(run, floor)
  parts = [page.table(head, rows)] if rows else []
  for name, artifact in run.kind("zero_shot").items():
    label = str(artifact["label"])
    parts.append(f"<h3>Accuracy of each {page.escape(label)}</h3>")
    fig = plots.per_class(artifact, 1.0 / len(artifact["classes"]))
    alt = f"Bars of the zero-shot accuracy of each {label}"
    parts.append(album.add(name, fig, alt, "In brackets: examples of the class."))
  return parts


def picture_parts(run: Run, album: Album) -> list[str]:
  """Returns the picture grids of every retrieval evaluator on held-out items."""
  parts = []
  for name, artifact in run.kind("retrieval").items():
    split = str(artifact["split"])
    if split == "train":
      continue
    source = data.open_source(run, split, run.source_options(name))
    found = pictures.grids(artifact, source) if source is not None else {}
    for way, fig in found.items():
      parts.append(f"<h3>{page.escape(plots.words(way))}, {page.escape(name)}</h3>")
      alt = f"Queries and the five nearest items, {plots.words(way)}"
      parts.append(album.add(f"neighbours_{name}_{way}", fig, alt))
  if parts:
    credit = CREDITS.get(run.get("data.source", ""), "")
    about = "Queries drawn at random, not chosen. A green frame and tick mark the same "
    parts.append(f'<p class="note">{about}concept. {page.escape(credit)}</p>')
  return parts


def routing_parts(run: Run, album: Album) -> list[str]:
  """Returns the figures about the sparse layers."""
  return [
    album.add(
      "routing", routing.final(run), "Heatmap of experts by modality for each layer",
      "Where each modality's tokens go at the end of training.",
    ),
    album.add(
      "routing_over_time", routing.over_time(run), "Routing over the training steps",
      "The same shares during training.",
    ),
    album.add(
      "experts", routing.experts_over_time(run),
      "Effective experts and dropped tokens over the training steps",
      "Effective experts: exp of the entropy of the mean routing probability. Dashed: "
      "the number below which the global entropy loss pushes for more. Dotted: the "
      "floor below which training warned.",
    ),
    album.add(
      "router", routing.router_over_time(run),
      "Token entropy, dead experts and router logits over the training steps",
      "Dead: experts with less than 1 % of the mean load of their layer.",
    ),
    *favourite_parts(run, album),
  ]  # fmt: skip


def favourite_parts(run: Run, album: Album) -> list[str]:
  """Returns what each expert likes: patches of images, and tables of words."""
  parts = []
  for layer, m, fig in experts.patches(run):
    title = f"{routing.spoken(layer)}: {m} patches that reach each expert"
    alt = f"For each expert the {m} patches with the largest gates"
    about = "Those with the largest gates, one of an example at most; framed."
    parts.append(f"<h3>{page.escape(title)}</h3>")
    parts.append(album.add(f"likes_{layer}_{m}", fig, alt, about))
  for layer, m, head, rows in experts.words(run):
    title = f"{routing.spoken(layer)}: {m} that reaches each expert"
    about = "By how much more often a word is among the expert's than among all."
    parts.append(f"<h3>{page.escape(title)}</h3>{page.table(head, rows, about)}")
  return parts


def build(
  workdir: str, beside: Iterable[Mapping[str, Any]] = (), compute_floors: bool = True
) -> tuple[pathlib.Path, str]:
  """Writes the report of a workdir; returns (path of the page, results as text)."""
  run = data.read(workdir)
  floors = data.floors(run, compute_floors)
  album = Album(run.path / "report")
  main = main_retrieval(run)
  floor = floors.get(main, {})
  head, rows = retrieval_rows(run, floors, list(beside))
  zero_head, zero_rows = zero_shot_rows(run, floor)
  note = "Green cells beat their floor." if floors else ""
  results = [page.table(head, rows, note), *[
    album.add("retrieval", plots.retrieval(run, main, run.retrievals()[main], floor),
              "Recall over the training steps, with floors")
  ]] if main else []  # fmt: skip
  health = health_rows(run)
  sections = [
    ("retrieval", "Retrieval", results),
    ("pictures", "Nearest neighbours", picture_parts(run, album)),
    ("zero-shot", "Zero-shot classification", zero_shot_parts(run, album, floor)),
    ("losses", "Losses", [album.add("losses", plots.losses(run), "Training curves")]),
    ("experts", "Experts", routing_parts(run, album)),
    ("space", "Embedding space", [page.table(["Measure", "value"], health)] if health
     else []),
    ("speed", "Speed", [album.add("throughput", plots.throughput(run), "Throughput")]),
    ("config", "Configuration", [
      page.details("The whole recipe", json.dumps(run.config, indent=1))
    ] if run.config else []),
  ]  # fmt: skip
  top = headline(run, floor) + page.section("run", "The run", [page.facts(facts(run))])
  lead = f"Step {run.final_step:,}"
  text = page.page(f"Concord: {run.get('name', 'a run')}", lead, top, sections)
  path = album.folder / "index.html"
  path.write_text(text)
  tables = [as_text(head, rows)] if main else ["retrieval: not measured"]
  return path, "\n\n".join(
    [*tables, *([as_text(zero_head, zero_rows)] * bool(zero_rows))]
  )


def as_text(head: Sequence[str], rows: Sequence[Row]) -> str:
  """Returns a table for the terminal."""
  lines = [list(head), *([r.name, *r.cells] for r in rows)]
  widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
  lines.insert(1, ["-" * w for w in widths])
  return "\n".join(
    "  ".join(
      [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]
    )
    for line in lines
  )


def others(paths: Iterable[str]) -> list[dict[str, Any]]:
  """Returns the results of other runs; says which files hold none."""
  found = []
  for path in map(pathlib.Path, paths):
    result = data.read_json(path)
    if "metrics" in result:
      found.append(result)
    else:
      made = "write it by tools.collect, or by --results of another report"
      print(f"report: no results to show beside in {path}: {made}")
  return found


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__)
  parser.add_argument("workdir", help="--workdir of the run")
  parser.add_argument("--beside", nargs="*", default=[], help="results of other runs")
  parser.add_argument("--results", help="write this run's results here, for --beside")
  parser.add_argument("--title", default="", help="of the run in --results")
  parser.add_argument("--no-floors", action="store_true", help="do not compute floors")
  args = parser.parse_args(argv)
  try:
    path, text = build(args.workdir, others(args.beside), not args.no_floors)
  except (FileNotFoundError, json.JSONDecodeError) as e:
    print(f"report: {e}", file=sys.stderr)
    return 1
  if args.results:
    run = data.read(args.workdir)
    found = data.results(run, args.title or run.get("name", "run"))
    pathlib.Path(args.results).write_text(json.dumps(found, indent=1) + "\n")
  print(f"\n{text}\n\nReport: {path}")
  return 0


if __name__ == "__main__":
  sys.exit(main())
