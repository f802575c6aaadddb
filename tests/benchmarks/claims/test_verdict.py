import pytest

from benchmarks.claims.shared import verdict
from benchmarks.claims.shared.verdict import Rule, Statement

FIGURES = {
  "new": {0: {"recall": 0.50}, 1: {"recall": 0.61}, 2: {"recall": 0.72}},
  "old": {2: {"recall": 0.62}, 1: {"recall": 0.50}, 0: {"recall": 0.40}},
  "odd": {0: {"recall": 0.10}, 1: {"recall": 0.60}, 2: {"recall": 0.90}},
  "few": {0: {"recall": 0.10}},
}


def rule(**changes):
  return Rule(**({"metric": "recall", "arm": "new"} | changes))


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    # Differences .10, .11, .10: far more certain than either arm by itself.
    (dict(minus="old", at_least=0.05), "held"),
    (dict(minus="old", at_least=0.15), "not held"),
    (dict(minus="old", at_least=0.104), "inconclusive"),
    (dict(minus="old", at_most=0.15), "held"),
    (dict(minus="old", at_most=0.05), "not held"),
    (dict(minus="odd", at_least=0.0), "inconclusive"),
    (dict(at_least=0.3), "held"),  # the mean .61 less 1.69 deviations of .11
    (dict(at_least=0.5), "inconclusive"),
    (dict(at_least=0.9), "not held"),
  ],
)
def test_a_rule_is_decided_by_the_interval_over_the_seeds(changes, expected):
  assert verdict.decide(rule(**changes), FIGURES)["verdict"] == expected


def test_the_interval_is_students():
  mean, low, high = verdict.interval([1.0, 2.0, 3.0])
  # t(.95, 2) = 2.91999; the standard error is 1 / sqrt(3).
  assert mean == 2.0
  assert high - mean == pytest.approx(2.91999 / 3**0.5, rel=1e-5)
  assert mean - low == pytest.approx(high - mean)


def test_a_statement_needs_all_its_rules():
  held, not_held = rule(at_least=0.3), rule(at_least=0.9)
  unknown = rule(minus="odd", at_least=0.0)

  def judge(*rules):
    statement = Statement(name="x", text="y", rules=rules)
    return verdict.judge(statement, FIGURES)["verdict"]

  assert judge(held, held) == "held"
  assert judge(held, unknown) == "inconclusive"
  assert judge(held, unknown, not_held) == "not held"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    (dict(), "expected exactly one"),
    (dict(at_least=0.0, at_most=1.0), "expected exactly one"),
    (dict(arm="newer", at_least=0.0), "no arm 'newer'"),
    (dict(metric="loss", at_least=0.0), "has no 'loss'"),
    (dict(minus="few", at_least=0.0), r"seeds \[0, 1, 2\] of new, \[0\] of few"),
    (dict(arm="few", at_least=0.0), "1 seeds: a spread needs two"),
  ],
)
def test_what_cannot_be_decided_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    verdict.decide(rule(**changes), FIGURES)


def test_a_diverged_figure_is_no_verdict():
  figures = {"new": {0: {"recall": 1.0}, 1: {"recall": float("nan")}}}
  with pytest.raises(ValueError, match="expected finite"):
    verdict.decide(rule(at_least=0.0), figures)
