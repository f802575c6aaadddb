"""The table of docs/reliability.md, from the committed results.

python -m tools.reliability           prints it
python -m tools.reliability --write   puts it into the page

Every JSON file of docs/results/reliability is either what `tools.chaos` wrote, or holds
`rows` of {what, times, outcome}; with `command`, of a row or of all, `device` and
`versions`.
"""

import argparse
from collections.abc import Sequence
import json
import pathlib
import re
import sys
from typing import Any

from tools import chaos

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reliability.md"
RESULTS = ROOT / "docs" / "results" / "reliability"
MARKED = re.compile(r"(<!-- results -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def table(results: Sequence[dict[str, Any]]) -> str:
  """Returns the rows of all results as a markdown table."""
  lines = ["| what was done | times | what came of it | command |", "|---|---|---|---|"]
  for result in results:
    made = result.get("made", result)
    for row in result["rows"] if "rows" in result else [chaos.row(result)]:
      cells = (row["what"], f"{row['times']:,}", row["outcome"])
      shown = " | ".join(str(cell).replace("|", "/") for cell in cells)
      lines.append(f"| {shown} | `{command(row.get('command') or made['command'])}` |")
  return "\n".join(lines)


def command(text: str) -> str:
  """Returns a recorded command as one types it: modules by name, no outputs."""
  text = re.sub(r"^python (\w+)\.py", _module, text)
  return re.sub(r" --(out|workdir|minutes)[ =]\S+", "", text)


def load() -> list[dict[str, Any]]:
  """Returns the committed results, by the names of their files."""
  return [json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))]


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--write", action="store_true", help="into docs/reliability.md")
  args = parser.parse_args(argv)
  found = table(load())
  if not args.write:
    print(found)
    return 0
  page = PAGE.read_text()
  PAGE.write_text(MARKED.sub(lambda m: f"{m[1]}{found}\n{m[3]}", page))
  return 0


def _module(match: re.Match[str]) -> str:
  name = match[1]
  known = (ROOT / "tools" / f"{name}.py").exists()
  return f"python -m tools.{name}" if known else match[0]


if __name__ == "__main__":
  sys.exit(main())
