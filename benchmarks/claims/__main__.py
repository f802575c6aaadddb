"""Runs claims: python -m benchmarks.claims KEY ... | --all.

Each writes docs/results/claims/KEY.json, with mean, spread and verdicts, and its plot,
docs/figures/claims/KEY.png; and prints the tables of its page. Interrupted, it goes on
where it was. `--tables` prints them from the JSON without running anything.
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

from benchmarks.claims.shared import claim as claim_lib
from benchmarks.claims.shared import page
from model import catalogue

PACKAGE = "benchmarks.claims"


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


def run(
  key: str, docs: pathlib.Path, work: pathlib.Path, seeds: Sequence[int] = ()
) -> dict:
  """Runs the claim `key` and writes its JSON and its plot below `docs`.

  Args:
    key: a file of benchmarks/claims/.
    docs: gets results/claims/KEY.json and figures/claims/KEY.png.
    work: keeps what is finished of a sweep, and the runs' own workdirs meanwhile.
    seeds: others than the claim's own.

  Raises:
    ValueError: no such claim, with near misses; or a rule that cannot be decided.
  """
  claim = find(key)
  if seeds:
    claim = dataclasses.replace(claim, seeds=tuple(seeds))
  records = claim_lib.run(claim, work / key, claim_lib.say_to_stderr)
  result = claim_lib.collect(claim, records, key)
  path = results(key, docs)
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(result, indent=1) + "\n")
  picture = docs / "figures" / "claims" / f"{key}.png"
  picture.parent.mkdir(parents=True, exist_ok=True)
  claim.draw(result).savefig(picture)
  return result


def results(key: str, docs: pathlib.Path) -> pathlib.Path:
  """Returns the path of a claim's JSON."""
  return docs / "results" / "claims" / f"{key}.json"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.claims")
  parser.add_argument(
    "keys", nargs="*", metavar="KEY", help="files of benchmarks/claims"
  )
  parser.add_argument("--all", action="store_true", help="every claim there is")
  parser.add_argument("--seeds", type=int, nargs="+", default=[], help="other seeds")
  parser.add_argument("--docs", type=pathlib.Path, default=pathlib.Path("docs"))
  parser.add_argument(
    "--work",
    type=pathlib.Path,
    default=pathlib.Path(tempfile.gettempdir()) / "concord_claims",
    help="keeps finished runs, so that an interrupted sweep goes on",
  )
  parser.add_argument("--tables", action="store_true", help="print, run nothing")
  args = parser.parse_args(argv)
  if args.all == bool(args.keys):
    parser.error(f"name claims or give --all; there are: {', '.join(keys())}")
  logging.set_verbosity(logging.ERROR)  # a collapse is what some arms are there for
  try:
    for key in keys() if args.all else args.keys:
      if args.tables:
        result = json.loads(results(key, args.docs).read_text())
      else:
        result = run(key, args.docs, args.work, args.seeds)
      print(f"{key}: {result['title']}\n")
      print(page.figures(result), page.verdicts(result), sep="\n\n")
  except (OSError, ValueError) as e:
    print(f"claims: {e}", file=sys.stderr)
    return 1
  return 0


if __name__ == "__main__":
  sys.exit(main())
