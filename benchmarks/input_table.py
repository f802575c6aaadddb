"""The tables of docs/input_pipeline.md.

python -m benchmarks.input_table speed benchmarks/results/input_*cpu.json
python -m benchmarks.input_table ablation benchmarks/results/input_cpu.json
python -m benchmarks.input_table quality benchmarks/results/jpeg_quality.json
"""

from collections.abc import Callable, Mapping, Sequence
import json
import pathlib
import sys
from typing import Any

ABLATION, LARGE = "each measure", "larger pictures"


def speed(*reports: Mapping[str, Any]) -> str:
  """Returns a markdown table of the loaders, group by group."""
  head = ("loader", "images/s/core", "CPU, us an image", "quartiles")
  lines = [[*head, "by the clock, images/s", "times torch", "its quartiles"]]
  groups = [group for r in reports for group in r["results"].items()]
  for group, found in groups:
    if group == ABLATION:
      continue
    size = f" of {found['side']} pixels" if group == LARGE else ""
    for name, row in found["rows"].items():
      lines.append([f"{name}, {group}{size}", *_cells(row, "times_torch")])
  return _markdown(lines)


def ablation(report: Mapping[str, Any]) -> str:
  """Returns a markdown table of our loader without each of the measures."""
  lines = [["ours", "images/s/core", "CPU, us an image", "quartiles"]]
  lines[0] += ["by the clock, images/s", "speed", "its quartiles"]
  for name, row in report["results"][ABLATION]["rows"].items():
    lines.append(["with all" if name == "ours" else name, *_cells(row, "times_ours")])
  return _markdown(lines)


def quality(report: Mapping[str, Any]) -> str:
  """Returns a markdown table of decibels: median, and least of all pictures."""
  lines = [
    ["decoded at", "against the whole", "the JPEG's loss", "Pillow's resampling"]
  ]
  parts, decibels = ("", ", of the JPEG", ", of the resampling"), report["decibels"]
  for name in [n for n in decibels if "," not in n]:
    each = (decibels[name + part] for part in parts)
    lines.append([name, *(f"{s['median']:.1f} ({s['min']:.1f})" for s in each)])
  return _markdown(lines)


def _cells(row: Mapping[str, Any], ratio: str) -> list[str]:
  cpu, times = row["cpu_microseconds"], row.get(ratio)
  over = times["cpu_seconds"] if times else None
  return [
    f"{row['images_per_second_per_core']:.0f}",
    f"{cpu['median']:.0f}",
    f"{cpu['q1']:.0f} to {cpu['q3']:.0f}",
    f"{row['images_per_second']:.0f}",
    f"{over['median']:.2f}" if over else "",
    f"{over['q1']:.2f} to {over['q3']:.2f}" if over else "",
  ]


def _markdown(lines: Sequence[Sequence[str]]) -> str:
  rows = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
  return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


if __name__ == "__main__":
  tables: dict[str, Callable[..., str]] = dict(
    speed=speed, ablation=ablation, quality=quality
  )
  print(
    tables[sys.argv[1]](
      *(json.loads(pathlib.Path(p).read_text()) for p in sys.argv[2:])
    )
  )
