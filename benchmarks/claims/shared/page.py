"""A claim's page, docs/claims/KEY.md, from its committed JSON and nothing else."""

from collections.abc import Mapping
from typing import Any

from benchmarks.claims.shared import verdict


def page(result: Mapping[str, Any]) -> str:
  """Returns the whole page: what was asked, found, and tried to find the setting."""
  key = result["key"]
  percent = f"{result['confidence']:.0%}".replace("%", " %")
  arms = [f"- `{name}`: {text}" for name, text in result["arms"].items()]
  found = [
    f"- {kind}: {', '.join(names) or 'none'}"
    for kind in (verdict.HELD, verdict.NOT_HELD, verdict.OPEN)
    for names in [[s["name"] for s in result["statements"] if s["verdict"] == kind]]
  ]
  tried = [f"- {line}" for line in result["choice"].get("pilots", ())]
  parts = [
    f"# {result['title']}",
    f"Claims of {result['source']} in miniature. {result['about']}",
    f"Written by `{result['command']}` from [its JSON](../results/claims/{key}.json); "
    f"do not edit. Seeds {', '.join(map(str, result['seeds']))}; {_made(result)}.",
    "\n".join(found),
    f"![the figures](../figures/claims/{key}.png)",
    "## Verdicts",
    verdicts(result),
    f"A rule holds if the {percent} interval of its mean over the seeds (Student's) "
    "lies wholly beyond the bound, and does not hold if wholly short of it; a claim "
    "holds if all its rules do, and does not if any does not. The rules were there "
    "before the runs.",
    "## Arms",
    "\n".join(arms),
    figures(result),
    f"Mean ± sample deviation over the seeds. {result['legend']}",
  ]
  if result["choice"]:
    parts += ["## How the setting was chosen", result["choice"].get("aim", "")]
    parts += ["\n".join(tried)]
  return "\n\n".join(part for part in parts if part) + "\n"


def _made(result: Mapping[str, Any]) -> str:
  seconds = sum(run["seconds"] for run in result["runs"])
  made = result["runs"][0]["made"]
  return f"{seconds / 60:.0f} minutes in all on {made['device']}, {made['versions']}"


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
