"""Verdicts by rules that are stated before a run, over seeds in pairs.

A rule asks whether one figure of an arm, or its difference to another arm on the same
seed, lies beyond a bound. It holds if Student's interval of the mean over the seeds
lies wholly beyond the bound, does not hold if the interval lies wholly short of it, and
is inconclusive otherwise. With three seeds the interval is wide: the mean +- 1.69
sample deviations at 90 %.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import statistics
from typing import Any

import scipy.stats

HELD, NOT_HELD, OPEN = "held", "not held", "inconclusive"
CONFIDENCE = 0.9

# arm -> seed -> metric -> value
Figures = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """`metric` of `arm`, minus that of `minus` if given, is at least or at most a bound.

  Attributes:
    metric: a name of what the claim measures.
    arm: whose.
    minus: the arm that is subtracted, seed by seed; "": none.
    at_least: the bound from below; or
    at_most: the bound from above. One of the two.
  """

  metric: str
  arm: str
  minus: str = ""
  at_least: float | None = None
  at_most: float | None = None

  def __post_init__(self):
    if (self.at_least is None) == (self.at_most is None):
      raise ValueError(
        f"rule on {self.metric} of {self.arm}: at_least = {self.at_least}, at_most = "
        f"{self.at_most}; expected exactly one of them"
      )

  def __str__(self) -> str:
    minus = f" - {self.minus}" if self.minus else ""
    sign, bound = (
      (">=", self.at_least) if self.at_least is not None else ("<=", self.at_most)
    )
    return f"{self.metric}: {self.arm}{minus} {sign} {bound:g}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Statement:
  """One thing that a paper says, and the rules that decide it: all must hold.

  Attributes:
    name: short, one word or two.
    text: what is claimed, in a sentence.
    rules: it holds if all do, and does not if any does not.
  """

  name: str
  text: str
  rules: tuple[Rule, ...]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
  """Returns (mean, low, high): Student's CONFIDENCE interval of the mean.

  Raises:
    ValueError: fewer than two values, whose spread is unknown.
  """
  n = len(values)
  if n < 2:
    raise ValueError(f"{n} seeds: a spread needs two at least, a claim three")
  mean = statistics.fmean(values)
  width = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, n - 1))
  half = width * statistics.stdev(values) / math.sqrt(n)
  return mean, mean - half, mean + half


def decide(rule: Rule, figures: Figures) -> dict[str, Any]:
  """Returns {"rule", "values" by seed, "mean", "low", "high", "verdict"}.

  Raises:
    ValueError: an arm or a metric that was not measured, seeds that differ between the
      two arms, or values that are not finite.
  """
  values = _of(rule, rule.arm, figures)
  if rule.minus:
    other = _of(rule, rule.minus, figures)
    if values.keys() != other.keys():
      raise ValueError(
        f"rule {rule}: seeds {sorted(values)} of {rule.arm}, {sorted(other)} of "
        f"{rule.minus}; a difference needs the same"
      )
    values = {seed: values[seed] - other[seed] for seed in values}
  ordered = [values[seed] for seed in sorted(values)]
  if not all(map(math.isfinite, ordered)):
    raise ValueError(f"rule {rule}: got {ordered}, expected finite values")
  mean, low, high = interval(ordered)
  if rule.at_least is not None:
    beyond, short = low >= rule.at_least, high < rule.at_least
  else:
    assert rule.at_most is not None
    beyond, short = high <= rule.at_most, low > rule.at_most
  verdict = HELD if beyond else NOT_HELD if short else OPEN
  return {
    "rule": str(rule),
    "values": ordered,
    "mean": mean,
    "low": low,
    "high": high,
    "verdict": verdict,
  }


def judge(statement: Statement, figures: Figures) -> dict[str, Any]:
  """Returns {"name", "text", "verdict", "rules": what `decide` returns of each}."""
  rules = [decide(rule, figures) for rule in statement.rules]
  found = {rule["verdict"] for rule in rules}
  verdict = HELD if found == {HELD} else NOT_HELD if NOT_HELD in found else OPEN
  return {
    "name": statement.name,
    "text": statement.text,
    "verdict": verdict,
    "rules": rules,
  }


def _of(rule: Rule, arm: str, figures: Figures) -> dict[int, float]:
  if arm not in figures:
    raise ValueError(f"rule {rule}: no arm {arm!r}; measured: {sorted(figures)}")
  for seed, found in figures[arm].items():
    if rule.metric not in found:
      raise ValueError(
        f"rule {rule}: {arm} on seed {seed} has no {rule.metric!r}; measured: "
        f"{sorted(found)}"
      )
  return {seed: float(found[rule.metric]) for seed, found in figures[arm].items()}
