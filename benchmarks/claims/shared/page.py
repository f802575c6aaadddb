"""The tables of a claim's page, in markdown, from its committed JSON."""

from collections.abc import Mapping
from typing import Any


def figures(result: Mapping[str, Any]) -> str:
  """Returns a table: one row per arm, mean ± sample deviation over the seeds."""
  metrics = [metric for metric, _ in result["columns"]]
  head = ["arm", *(heading for _, heading in result["columns"])]
  lines = [_row(head), "|---" * len(head) + "|"]
  for arm in result["arms"]:
    found = result["summary"][arm]
    lines.append(_row([arm, *(_cell(found.get(m)) for m in metrics)]))
  return "\n".join(lines)


def verdicts(result: Mapping[str, Any]) -> str:
  """Returns a table: one row per statement, with its rules and what they found."""
  percent = f"{result['confidence']:.0%}".replace("%", " %")
  head = ["claim", f"rule, and the mean found [its {percent} interval]", "verdict"]
  lines = [_row(head), "|---" * len(head) + "|"]
  for statement in result["statements"]:
    rules = [
      f"{r['rule']}: {r['mean']:.3g} [{r['low']:.3g}, {r['high']:.3g}] {r['verdict']}"
      for r in statement["rules"]
    ]
    lines.append(
      _row([statement["text"], "<br>".join(rules), f"**{statement['verdict']}**"])
    )
  return "\n".join(lines)


def _row(cells: list[str]) -> str:
  return "| " + " | ".join(cells) + " |"


def _cell(value: Mapping[str, float] | None) -> str:
  if value is None:
    return "-"
  digits = 1 if abs(value["mean"]) >= 10 else 2 if abs(value["mean"]) >= 1 else 3
  return f"{value['mean']:.{digits}f} ± {value['deviation']:.{digits}f}"
