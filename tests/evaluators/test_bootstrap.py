"""Intervals of means: seeded, paired, and of the width that statistics knows."""

import dataclasses

import numpy as np
import pytest

from evaluators import bootstrap


def test_an_interval_is_that_of_all_resamples_drawn_by_hand():
  x = np.array([0.0, 1.0, 5.0])
  rng = np.random.default_rng((4, 3))
  drawn = [x[rng.integers(3, size=3)].mean() for _ in range(50)]
  got = bootstrap.means({"a": x}, draws=50, seed=4)
  want = np.quantile(drawn, [0.025, 0.975])
  assert got["a"] == 2.0
  np.testing.assert_allclose([got["a_low"], got["a_high"]], want)
  assert bootstrap.means({"a": x}) == {"a": 2.0}


def test_the_width_is_that_of_the_normal_approximation():
  hits = np.arange(2000) < 600
  got = bootstrap.means({"r1": hits}, draws=2000)
  error = 1.96 * np.sqrt(0.3 * 0.7 / 2000)
  assert got["r1_low"] == pytest.approx(0.3 - error, rel=0.02)
  assert got["r1_high"] == pytest.approx(0.3 + error, rel=0.02)


def test_metrics_and_models_meet_the_same_resamples():
  rng = np.random.default_rng(0)
  a = rng.random(500) < 0.5
  b = a.copy()
  b[:40] = False  # worse in a few queries: certain in pairs, not by two intervals
  both = bootstrap.means({"a": a, "again": a}, draws=100)
  assert both["a_low"] == both["again_low"]
  paired = bootstrap.difference(a, b, draws=1000)
  assert 0 < paired["low"] < paired["mean"] < paired["high"]
  mine, other = (bootstrap.means({"x": v}, draws=1000) for v in (a, b))
  assert mine["x_low"] < other["x_high"]


def test_evaluations_are_compared_by_their_artifacts(context, tmp_path):
  r1 = np.array([True, False, True, True])
  for folder, values in (("a", r1), ("b", ~r1)):
    here = dataclasses.replace(context, workdir=f"{tmp_path}/{folder}")
    bootstrap.save(here, "retrieval", {"i2t_r1": values})
  a, b = (str(tmp_path / x / "artifacts") for x in "ab")
  got = bootstrap.compared(a, b, ["retrieval"], 100)
  assert got.keys() == {"retrieval/i2t_r1"} and got["retrieval/i2t_r1"]["mean"] == 0.5
  with pytest.raises(ValueError, match=r"no values per query of \['zero_shot'\]"):
    bootstrap.compared(a, b, ["zero_shot"], 100)
  bootstrap.save(here, "retrieval", {"i2t_r1": r1[:3]})
  with pytest.raises(ValueError, match="4 queries here, 3 in"):
    bootstrap.compared(a, b, ["retrieval"], 100)


def test_errors():
  with pytest.raises(ValueError, match="at least one query"):
    bootstrap.means({"a": np.zeros(0)}, draws=3)
  with pytest.raises(ValueError, match="the same queries"):
    bootstrap.difference(np.zeros(3), np.zeros(4), 10)
