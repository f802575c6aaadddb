"""Probes against scikit-learn and plain loops; the standard plot."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from benchmarks.claims.shared import plot, probes


def labelled(n, seed, spread=0.8):
  rng = np.random.default_rng(seed)
  y = rng.integers(0, 3, n)
  centre = np.random.default_rng(0).normal(size=(3, 5))
  return (centre[y] + spread * rng.normal(size=(n, 5))).astype(np.float32), y


def test_neighbours_vote_by_cosine():
  train, (x, y) = labelled(40, 1), labelled(20, 2)
  right = 0
  for query, truth in zip(x, y):
    cosine = [
      float(query @ v / np.linalg.norm(query) / np.linalg.norm(v)) for v in train[0]
    ]
    near = sorted(range(40), key=lambda j: -cosine[j])[:5]
    votes = [train[1][j] for j in near]
    most = max(votes.count(c) for c in set(votes))
    right += next(c for c in votes if votes.count(c) == most) == truth
  assert probes.knn(train, (x, y)) == pytest.approx(right / 20)


def test_linear_probes_are_ridge_regression():
  linear = pytest.importorskip("sklearn.linear_model")
  (x, y), (queries, truth) = labelled(60, 1), labelled(30, 2)
  mean, deviation = x.mean(0), x.std(0)
  model = linear.Ridge(alpha=1e-2 * 60).fit((x - mean) / deviation, np.eye(3)[y])
  found = model.predict((queries - mean) / deviation)
  expected = (found.argmax(1) == truth).mean()
  assert probes.linear((x, y), (queries, truth)) == pytest.approx(expected)
  np.testing.assert_allclose(probes.predict(x, np.eye(3)[y], queries), found, atol=1e-4)


def test_r2_is_one_for_a_linear_map_and_none_for_noise():
  rng = np.random.default_rng(0)
  x, queries = rng.normal(size=(2, 200, 4))
  w = rng.normal(size=(4, 2))
  assert probes.r2((x, x @ w), (queries, queries @ w)) > 0.99
  assert probes.r2((x, rng.normal(size=(200, 2))), (queries, queries @ w)) < 0.2


def test_separability_is_chance_for_twins():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 400, 3))
  assert probes.separability(a, b) < 0.6
  assert probes.separability(a, b + 5) == 1.0


def test_recall_and_auc_are_plain_loops():
  rng = np.random.default_rng(0)
  x, y = (lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True))(
    rng.normal(size=(2, 9, 3))
  )
  s = x @ y.T
  right = [(s[i] >= s[i, i]).sum() <= 2 for i in range(9)]
  right += [(s[:, i] >= s[i, i]).sum() <= 2 for i in range(9)]
  assert probes.recall(x, y, 2) == pytest.approx(np.mean(right))
  a, b = rng.integers(0, 4, 7), rng.integers(0, 4, 8)
  wins = [(p > q) + 0.5 * (p == q) for p in a for q in b]
  assert probes.auc(a, b) == pytest.approx(np.mean(wins))


def test_the_plot_has_a_point_for_each_seed_and_a_line_for_each_arm():
  runs = [
    {"arm": arm, "figures": {"x": i + 0.1 * seed}, "arrays": {"loss": [2.0, 1.0]}}
    for i, arm in enumerate(("old", "new"))
    for seed in range(3)
  ]
  del runs[0]["arrays"]["loss"]  # then the arm has no curve
  result = {"title": "t", "arms": ["old", "new"], "seeds": [0, 1, 2], "runs": runs}
  fig = plot.draw(
    result, panels=(("x", "X"),), curves=(("loss", "L"),), chance={"x": 0}
  )
  points, curves = fig.axes
  assert [len(line.get_xdata()) for line in points.lines[:2]] == [3, 3]
  assert [line.get_label() for line in curves.lines] == ["new"]
  plt.close(fig)
  assert plot.thin(np.arange(120.0))[:2] == [0.5, 2.5]
  assert plot.thin([1.23456]) == [1.2346]
