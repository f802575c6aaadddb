"""Exact shares: every place once, and never far from the integral of the weights."""

from fractions import Fraction

import numpy as np
import pytest

from input_pipeline.interleave import Interleave, scaled


def integral(schedules, position):
  """What each source is due, by adding up its share example by example."""
  totals = np.zeros(len(schedules))
  for example in range(position):
    # Shares are linear between knots: the middle of an example is its mean.
    totals += shares(schedules, example + 0.5)
  return totals


def shares(schedules, at):
  knots = sorted({x for s in schedules if not isinstance(s, float) for x, _ in s} | {0})
  before = max(x for x in knots if x <= at)
  after = min((x for x in knots if x > at), default=before)

  def weights(x, side):
    return np.array([value(s, x, side) for s in schedules])

  left, right = weights(before, 1e-9), weights(after, -1e-9)
  if after == before:
    return left / left.sum()
  part = (at - before) / (after - before)
  return (1 - part) * left / left.sum() + part * right / right.sum()


def value(schedule, x, side):
  if isinstance(schedule, float):
    return schedule
  return np.interp(x + side, *zip(*schedule))


def random_schedules(rng, sources):
  def one():
    if rng.random() < 0.4:
      return round(rng.random() + 0.01, 2)
    at = np.sort(rng.choice(120, rng.integers(1, 4), replace=False))
    return tuple((int(x), round(max(0.0, rng.random() - 0.2), 2)) for x in at)

  # One that is never zero: something must be left to give.
  return (*(one() for _ in range(sources - 1)), 0.3)


@pytest.mark.parametrize(("sources", "most"), [(1, 0), (2, 0.5), (4, 1.0), (7, 1.5)])
def test_every_place_once_and_never_far_from_what_is_due(sources, most):
  rng = np.random.default_rng(sources)
  for _ in range(6):
    plan = Interleave(random_schedules(rng, sources), block=int(rng.integers(1, 4)))
    counts = [0] * sources
    for position in range(200):
      source, place = plan.locate(position)
      assert place == counts[source]
      counts[source] += 1
      assert plan.counts(position + 1) == tuple(counts)
      if (position + 1) % plan.block == 0:
        due = plan.due(position + 1)
        assert sum(due) == position + 1
        off = max(abs(n - d) for n, d in zip(counts, due)) / plan.block
        assert off <= most and (off < most or most <= 0.5)
    np.testing.assert_allclose(
      [float(d) for d in plan.due(150)], integral(plan.schedules, 150), rtol=1e-6
    )


def test_round_weights_are_met_exactly():
  plan = Interleave((7, 2, 1))
  assert plan.counts(10) == (7, 2, 1)
  assert plan.counts(10**15) == (7 * 10**14, 2 * 10**14, 10**14)
  source, place = plan.locate(10**15 + 3)
  assert place == plan.counts(10**15 + 3)[source]
  assert Interleave((0.1, 0.2, 0.7)).due(1) == (
    Fraction(1, 10),
    Fraction(1, 5),
    Fraction(7, 10),
  )


def test_a_schedule_gives_the_integral_of_its_weights():
  # From all of the first to all of the second source; then a jump back to halves.
  first = ((0, 1), (1000, 0), (1000, 1))
  plan = Interleave((first, ((0, 0), (1000, 1))))
  assert plan.counts(1000) == (500, 500)
  assert plan.due(500) == (375, 125)
  assert plan.counts(3000) == (1500, 1500)
  assert plan.counts(100)[0] == 95


def test_a_source_may_come_late_and_end():
  plan = Interleave((1, ((100, 0), (100, 1), (200, 1), (200, 0))))
  got = [plan.locate(p)[0] for p in range(400)]
  assert set(got[:100]) == {0} and sum(got[100:200]) == 50 and set(got[201:]) == {0}


def test_blocks_are_of_one_source():
  plan = Interleave((0.5, 0.3, 0.2), block=4)
  got = [plan.locate(p) for p in range(400)]
  for start in range(0, 400, 4):
    source, place = got[start]
    assert got[start : start + 4] == [(source, place + i) for i in range(4)]
  assert plan.counts(400) == (200, 120, 80)
  assert sum(plan.counts(402)) == 402


@pytest.mark.parametrize("sources", [2, 3, 7])
def test_a_change_leaves_the_past_as_it_was(sources):
  # Also amid ramps, of the source that changes and of others: a knot would not do.
  rng = np.random.default_rng(sources)
  for _ in range(40):
    old, new = random_schedules(rng, sources), random_schedules(rng, sources)
    block, n = int(rng.integers(1, 4)), int(rng.integers(1, 100))
    n -= n % block
    before = Interleave(old, block)
    changed = tuple(
      (a, n, b) if n and rng.random() < 0.7 else a for a, b in zip(old, new)
    )
    after = Interleave(changed, block)
    at = [after.locate(p) for p in range(150)]
    assert at[:n] == [before.locate(p) for p in range(n)]
    assert after.counts(n) == before.counts(n)
    assert_every_place_once(at, after)


def assert_every_place_once(at, plan):
  counts = [0] * len(plan.schedules)
  for position, (source, place) in enumerate(at):
    assert place == counts[source]
    counts[source] += 1
    assert plan.counts(position + 1) == tuple(counts)


def test_from_a_change_on_the_new_shares_are_met():
  n = 1000
  ramp = ((0, 0.2), (2000, 0.4))
  plan = Interleave((0.8, (ramp, n, ((n, 0.8), (2 * n, 2.4))), 0.0))
  before = Interleave((0.8, ramp, 0.0))
  given, due = before.counts(n), before.due(n)
  assert plan.due(n) == due
  # From halves to a quarter and three quarters, in a line.
  assert plan.due(2 * n) == (due[0] + 375, due[1] + 625, 0)
  assert plan.counts(2 * n) == (given[0] + 375, given[1] + 625, 0)
  assert plan.counts(10**9 + 2 * n)[1] == given[1] + 625 + 75 * 10**7
  twice = Interleave(((0.8, n, 1, 2 * n, 0.0), (ramp, n, 1), (0, 2 * n, 1)))
  assert twice.counts(2 * n) == (given[0] + 500, given[1] + 500, 0)
  assert twice.counts(3 * n)[2] == 500


def test_a_change_waits_for_the_end_of_a_block():
  plan = Interleave(((1, 5, 0), (0, 5, 1)), block=4)
  assert [plan.locate(p)[0] for p in range(12)] == [0] * 8 + [1] * 4


def test_scaled_changes():
  plan = (0.5, 10, ((10, 0.25), (20, 1)))
  third = Fraction(1, 3)
  assert scaled(plan, third) == (
    third / 2,
    10,
    ((10, third / 4), (20, third)),
  )


@pytest.mark.parametrize(
  ("schedules", "error"),
  [
    ((-1.0, 1.0), r"mixture\[0\]: the weight -1.0 must be finite and not negative"),
    ((1.0, float("nan")), "weight nan must be finite"),
    ((0.0, 0.0), "all sources have weight 0 at example 0"),
    ((((0, 1), (9, 0)),), "all sources have weight 0 at example 9"),
    ((((5, 1.0), (2, 1.0)),), "in order"),
    (((),), "must be a number, "),
    ((((0, 1, 2),),), "must be a number, "),
    (((0.9, 50),), r"must be \(old, example, new\)"),
    (((0.9, 50, 0.5, 50, 0.1),), "above the one before"),
    (((0.9, 0.5, 0.5),), "a whole number"),
    (((0.9, 50, 0.0),), "all sources have weight 0 at example 50"),
    (((0.9, 50, -1.0),), "the weight -1.0 must be finite"),
  ],
)
def test_errors(schedules, error):
  with pytest.raises(ValueError, match=error):
    Interleave(schedules)
