"""The table of docs/performance.md: python -m benchmarks.table FILES.

Files are what benchmarks.moe and benchmarks.step write; a row is a contender. Times on
a CPU are the process's own, since others may use the core too; elsewhere the clock's.
"""

from collections.abc import Mapping, Sequence
import json
import pathlib
import sys
from typing import Any

HEAD = (
  "measured",
  "s a step",
  "quartiles",
  "by the clock",
  "ratio",
  "its quartiles",
  "TFLOP/s",
  "of a matmul",
)


def rows(report: Mapping[str, Any]) -> list[list[str]]:
  """Returns the cells of a report's contenders."""
  found = []
  for name, r in report["results"].items():
    # Contenders of their own processes say themselves what they ran on.
    cores = r.get("cores", report.get("cores"))
    kind = "cpu_seconds" if cores else "seconds"
    over = r.get("over_dense") or r.get("over_open_clip")
    where = f"{cores} core{'s' * (cores > 1)}" if cores else r.get("device")
    where = where or report["device"]
    settings = report["settings"]
    size = settings["size"]
    for change in settings.get("overrides", ()):
      key, _, value = change.partition("=")
      if key == "model.trunk.depth":
        size = f"{size} of {value} blocks"
    found.append(
      [
        f"{name}, {size}, batch {settings['batch']}, {where}",
        f"{r[kind]['median']:.4g}",
        f"{r[kind]['q1']:.4g} to {r[kind]['q3']:.4g}",
        f"{r['seconds']['median']:.4g}",
        f"{over[kind]['median']:.2f}" if over else "",
        f"{over[kind]['q1']:.2f} to {over[kind]['q3']:.2f}" if over else "",
        f"{r['achieved_tflops']:.3g}",
        f"{r['share_of_matmul']:.0%}",
      ]
    )
  return found


def table(reports: Sequence[Mapping[str, Any]]) -> str:
  """Returns a markdown table of the contenders of all reports."""
  lines = [list(HEAD), ["---"] * len(HEAD)]
  for report in reports:
    lines += rows(report)
  return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
  print(table([json.loads(pathlib.Path(p).read_text()) for p in sys.argv[1:]]))
