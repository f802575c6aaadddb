"""Collects the last evaluations of finished runs, one per seed, into a committed JSON.

python -m tools.collect runs/a0 runs/a1 --title "LIMoE" --out docs/results/x.json
python -m tools.collect --table docs/results/*.json

The first form writes the figures of each run, its floors, commands, device and
versions; the second prints the README's table of such files, mean ± deviation.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
import pathlib
import statistics
import sys
from typing import Any

from tools import report_data
from training import environment

COLUMNS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
MAIN = "retrieval"


def collect(workdirs: Sequence[str], title: str) -> dict[str, Any]:
  """Returns {title, seeds, metrics: name -> one figure per run, floor, floors, made}.

  Raises:
    ValueError: runs of different recipes, or one that measured nothing.
  """
  runs = [report_data.read(pathlib.Path(w)) for w in workdirs]
  names = {str(r.get("name")) for r in runs}
  if len(names) > 1:
    raise ValueError(f"runs of different recipes: {sorted(names)}")
  found = [report_data.results(r, title)["metrics"] for r in runs]
  if not all(found):
    raise ValueError(f"a run of {workdirs} has no evaluations")
  shared = sorted(set.intersection(*map(set, found)))
  floors: dict[str, list[float]] = {}
  kind = ""
  for workdir in workdirs:
    path = pathlib.Path(workdir) / "artifacts" / "floors.json"
    floor = json.loads(path.read_text()).get(MAIN, {}) if path.exists() else {}
    kind = floor.get("title", kind)
    for key, value in floor.items():
      if isinstance(value, int | float):
        floors.setdefault(key, []).append(value)
  return {
    "title": title,
    "seeds": [r.get("seed") for r in runs],
    "steps": [r.final_step for r in runs],
    "metrics": {k: [f[k] for f in found] for k in shared},
    "floor": kind,
    "floors": floors,
    "made": [environment.read(w) for w in workdirs],
  }


def table(results: Sequence[Mapping[str, Any]]) -> str:
  """Returns a markdown table: rows of results, and one of the first one's floors."""
  head = ["held-out retrieval", *(c.replace("_r", " R@") for c in COLUMNS), "seeds"]
  lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]

  def add(title: str, found: Mapping[str, Any], prefix: str, seeds: int) -> None:
    for sub, note in (("", ""), ("without_flag/", ", without flags")):
      cells = [_cell(found.get(f"{prefix}{sub}{c}")) for c in COLUMNS]
      if set(cells) != {"-"}:
        lines.append("| " + " | ".join([title + note, *cells, str(seeds)]) + " |")

  for result in results:
    add(result["title"], result["metrics"], f"eval/{MAIN}/", len(result["seeds"]))
  for result in results:
    if result.get("floors"):
      count = len(next(iter(result["floors"].values())))
      add(f"floor: {result['floor']}", result["floors"], "", count)
      break
  return "\n".join(lines)


def _read(path: str) -> dict[str, Any]:
  try:
    found = json.loads(pathlib.Path(path).read_text())
  except ValueError as e:
    raise ValueError(f"{path} is not JSON: {e}") from None
  if not isinstance(found, dict) or not {"title", "metrics", "seeds"} <= found.keys():
    raise ValueError(f"{path} is not a file that tools.collect wrote")
  return found


def _cell(values: Sequence[float] | None) -> str:
  if not values:
    return "-"
  mean = f"{statistics.fmean(values):.3f}"
  return mean + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(prog="python -m tools.collect", description=__doc__)
  parser.add_argument("paths", nargs="+", help="workdirs; with --table, JSON files")
  parser.add_argument(
    "--table", action="store_true", help="print a table of JSON files"
  )
  parser.add_argument("--title", default="", help="of the results")
  parser.add_argument("--out", help="the JSON file to write")
  args = parser.parse_args(argv)
  if not args.table and not args.out:
    parser.error("--out is needed: the JSON file to write")
  try:
    if args.table:
      print(table([_read(path) for path in args.paths]))
      return 0
    found = collect(args.paths, args.title or pathlib.Path(args.out).stem)
    pathlib.Path(args.out).write_text(json.dumps(found, indent=1) + "\n")
  except (OSError, ValueError) as e:
    print(f"collect: {e}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
