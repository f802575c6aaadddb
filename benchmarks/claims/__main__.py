"""Runs claims: python -m benchmarks.claims KEY ... | --all | --wave 1.

Each writes docs/results/claims/KEY.json, with mean, spread and verdicts, its plot,
docs/figures/claims/KEY.png, and its page, docs/claims/KEY.md. Interrupted, it goes on
where it was. `--write` judges the runs in the JSON, and writes all three, anew.
`--tune` only prints what each arm's best options are, of a claim that has a grid.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import importlib
import json
import pathlib
import sys
import tempfile

from absl import logging
import matplotlib.pyplot as plt

from benchmarks.claims.shared import claim as claim_lib
from benchmarks.claims.shared import lab, page
from model import catalogue

PACKAGE = "benchmarks.claims"
DPI = 90  # of the plots, which lie in the repository


def keys() -> list[str]:
  """Returns the keys of all claims: the files of benchmarks/claims/."""
  return [k for k in catalogue.names(PACKAGE) if k not in ("__main__", "shared")]


def find(key: str) -> claim_lib.Claim:
  """Returns the claim of that key.

  Raises:
    ValueError: there is none; lists near misses.
  """
  if key not in keys():
    known = catalogue.near_misses(key, keys())
    raise ValueError(f"no claim {key!r} in benchmarks/claims/: {known}")
  return importlib.import_module(f"{PACKAGE}.{key}").CLAIM


def run(key: str, work: pathlib.Path, seeds: Sequence[int] = ()) -> list:
  """Returns the runs of the claim `key`, after running what is left of it.

  Args:
    key: a file of benchmarks/claims/.
    work: keeps what is finished of a sweep, and the runs' own workdirs meanwhile.
    seeds: others than the claim's own.

  Raises:
    ValueError: no such claim; lists near misses.
  """
  claim = find(key)
  if seeds:
    claim = dataclasses.replace(claim, seeds=tuple(seeds))
  return claim_lib.run(claim, work / key, claim_lib.say_to_stderr)


def tune(key: str) -> None:
  """Prints the lines TUNED and TRIED for a claim's file; see `lab.tune`.

  Raises:
    ValueError: no such claim, or one without a grid.
  """
  find(key)
  module = importlib.import_module(f"{PACKAGE}.{key}")
  if not hasattr(module, "GRID"):
    raise ValueError(f"benchmarks/claims/{key}.py defines no GRID to tune over")
  chosen, lines = lab.tune(module, claim_lib.say_to_stderr)
  print(f"TUNED = {chosen}\nTRIED = {tuple(lines)}")


def results(key: str, docs: pathlib.Path) -> pathlib.Path:
  """Returns the path of a claim's JSON."""
  return docs / "results" / "claims" / f"{key}.json"


def write(key: str, docs: pathlib.Path, records: list) -> dict:
  """Judges the runs; writes JSON, plot and page below `docs`. Returns what is in it.

  Raises:
    ValueError: a rule that cannot be decided.
  """
  claim = find(key)
  result = claim_lib.collect(claim, records, key)
  picture = docs / "figures" / "claims" / f"{key}.png"
  text = docs / "claims" / f"{key}.md"
  for path in (results(key, docs), picture, text):
    path.parent.mkdir(parents=True, exist_ok=True)
  results(key, docs).write_text(json.dumps(result, indent=1) + "\n")
  fig = claim.draw(result)
  fig.savefig(picture, dpi=DPI)
  plt.close(fig)
  text.write_text(page.page(result))
  return result


def chosen(args: argparse.Namespace) -> list[str]:
  """Returns the keys that the command line asks for.

  Raises:
    FileNotFoundError: a wave of which there is no list.
  """
  if args.wave:
    listed = args.docs / "systems" / f"wave{args.wave}.json"
    rows = {row["key"] for row in json.loads(listed.read_text())}
    return [key for key in keys() if key in rows]
  return keys() if args.all else args.keys


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.claims")
  parser.add_argument(
    "keys", nargs="*", metavar="KEY", help="files of benchmarks/claims"
  )
  parser.add_argument("--all", action="store_true", help="every claim there is")
  parser.add_argument("--wave", type=int, help="those of docs/systems/wave<N>.json")
  parser.add_argument("--seeds", type=int, nargs="+", default=[], help="other seeds")
  parser.add_argument("--docs", type=pathlib.Path, default=pathlib.Path("docs"))
  parser.add_argument(
    "--work",
    type=pathlib.Path,
    default=pathlib.Path(tempfile.gettempdir()) / "concord_claims",
    help="keeps finished runs, so that an interrupted sweep goes on",
  )
  parser.add_argument(
    "--write", action="store_true", help="from the JSON, without runs"
  )
  parser.add_argument("--tune", action="store_true", help="options for each arm")
  args = parser.parse_args(argv)
  if sum(map(bool, (args.all, args.keys, args.wave))) != 1:
    parser.error(f"name claims, or --all, or --wave; there are: {', '.join(keys())}")
  logging.set_verbosity(logging.ERROR)  # a collapse is what some arms are there for
  try:
    asked = chosen(args)
  except OSError as e:
    print(f"claims: {e}", file=sys.stderr)
    return 1
  status = 0
  for key in asked:
    try:
      _one(key, args)
    except (OSError, ValueError) as e:  # such as data that are not there: others go on
      print(f"claims: {key}: {e}", file=sys.stderr)
      status = 1
  return status


def _one(key: str, args: argparse.Namespace) -> None:
  """Does what the command line asks for, of one claim."""
  if args.tune:
    tune(key)
    return
  if args.write:
    records = json.loads(results(key, args.docs).read_text())["runs"]
  else:
    records = run(key, args.work, args.seeds)
  result = write(key, args.docs, records)
  print(f"{key}: {result['title']}\n")
  print(page.figures(result), page.verdicts(result), sep="\n\n")


if __name__ == "__main__":
  sys.exit(main())
