"""Least squares on few examples, against scikit-learn's ridge and by hand."""

import numpy as np
import pytest

from evaluators import few_shot
from tests.evaluators.test_probe import CLASSES, data


@pytest.mark.parametrize("ridge", [1e-2, 10.0])
def test_the_fit_is_scikit_learns_ridge(ridge):
  linear = pytest.importorskip("sklearn.linear_model")
  x, y, queries, _ = data()
  x, queries = few_shot.standardised(x, queries)
  w, chosen = few_shot.fit(x, y, CLASSES, (ridge,))
  model = linear.Ridge(alpha=ridge, fit_intercept=False).fit(
    x, 2 * np.eye(CLASSES)[y] - 1
  )
  assert chosen == ridge
  np.testing.assert_allclose(queries @ w, model.predict(queries), atol=1e-8)


def test_the_ridge_is_that_of_leaving_each_example_out():
  x, y, queries, _ = data(spread=2.0)
  x, _ = few_shot.standardised(x[:20], queries)
  y, ridges = y[:20], (1e-3, 1.0, 30.0, 1e3, 1e5)
  errors, target = [], 2 * np.eye(CLASSES)[y] - 1
  for ridge in ridges:
    total = 0.0
    for i in range(20):
      rest = np.arange(20) != i
      w, _ = few_shot.fit(x[rest], y[rest], CLASSES, (ridge,))
      total += float(((x[i] @ w - target[i]) ** 2).sum())
    errors.append(total)
  assert 0 < np.argmin(errors) < 4  # neither end
  assert few_shot.fit(x, y, CLASSES, ridges)[1] == ridges[int(np.argmin(errors))]


def test_draws_are_of_each_class_and_seeded():
  y = np.repeat([0, 1, 2], [10, 4, 1])
  rows = few_shot.draw(y, 3, np.random.default_rng(0))
  np.testing.assert_array_equal(np.bincount(y[rows]), [3, 3, 1])
  again = few_shot.draw(y, 3, np.random.default_rng(0))
  other = few_shot.draw(y, 3, np.random.default_rng(1))
  assert rows.tolist() == again.tolist() != other.tolist()


def test_evaluator(context, params):
  got = few_shot.Evaluator(context, shots=(1, 5), bootstrap=20).run(params)
  assert {k for k in got if not k.endswith(("low", "high"))} == {
    "group_1shot_top1",
    "group_5shot_top1",
    "group_majority",
    "group_n",
  }
  assert got["group_5shot_top1_low"] <= got["group_5shot_top1"] <= 1
  # 12 shots are all examples: each draw is the same, and so is the accuracy.
  one, two = (
    few_shot.Evaluator(context, shots=(13,), seeds=s).run(params)
    for s in ((0,), (1, 2))
  )
  assert one == two


def test_errors(context):
  with pytest.raises(ValueError, match=r"few_shot\.shots = \(0,\)"):
    few_shot.Evaluator(context, shots=(0,))
  with pytest.raises(ValueError, match=r"ridges = \(-1\.0,\)"):
    few_shot.Evaluator(context, ridges=(-1.0,))
