"""Probes of frozen embeddings against scikit-learn, and by hand."""

import numpy as np
import pytest

from evaluators import features, probe

M, N, D, CLASSES = 60, 25, 6, 4


def data(seed=0, spread=1.0):
  """Unit vectors around a centre of each class."""
  rng = np.random.default_rng(seed)
  centres = rng.normal(size=(CLASSES, D))
  label = rng.integers(0, CLASSES, M + N).astype(np.int32)
  x = centres[label] + spread * rng.normal(size=(M + N, D))
  x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
  return x[:M], label[:M], x[M:], label[M:]


@pytest.mark.parametrize("k", [1, 5, 100])
def test_nearest_neighbours_are_those_of_scikit_learn(k):
  neighbors = pytest.importorskip("sklearn.neighbors")
  x, y, queries, _ = data()
  model = neighbors.KNeighborsClassifier(
    n_neighbors=min(k, M), metric="cosine", algorithm="brute"
  )
  got = probe.nearest(x, y, queries, k=k, classes=CLASSES, tile=7)
  np.testing.assert_array_equal(got, model.fit(x, y).predict(queries))


def test_weighted_votes_are_those_of_scikit_learn():
  neighbors = pytest.importorskip("sklearn.neighbors")
  x, y, queries, _ = data(spread=2.0)
  t = 0.07
  model = neighbors.KNeighborsClassifier(
    n_neighbors=20,
    metric="cosine",
    algorithm="brute",
    weights=lambda distance: np.exp((1 - distance) / t),
  )
  want = model.fit(x, y).predict(queries)
  got = probe.nearest(x, y, queries, k=20, classes=CLASSES, temperature=t, tile=7)
  np.testing.assert_array_equal(got, want)
  plain = probe.nearest(x, y, queries, k=20, classes=CLASSES)
  assert (plain != want).any()


def test_ties_go_to_the_first():
  x = np.eye(3, dtype=np.float32)
  y = np.int32([2, 1, 0])
  query = np.ones((1, 3), np.float32)
  assert probe.nearest(x, y, query, k=1, classes=3) == 2  # the first row
  assert probe.nearest(x, y, query, k=2, classes=3) == 1  # the first class


@pytest.mark.parametrize("ridge", [1e-3, 0.3])
def test_least_squares_is_scikit_learns_ridge(ridge):
  linear = pytest.importorskip("sklearn.linear_model")
  x, y, queries, _ = data()
  w, b = probe.least_squares(x, y, ridge, CLASSES)
  model = linear.Ridge(alpha=ridge * M).fit(x.astype(np.float64), np.eye(CLASSES)[y])
  np.testing.assert_allclose(queries @ w + b, model.predict(queries), atol=1e-9)


def test_the_ridge_is_chosen_on_concepts_that_were_left_out():
  x, y, queries, truth = data(spread=0.3)
  concept = np.arange(M, dtype=np.int32) // 2
  (w, b), ridge = probe.fitted(x, y, concept, (1e6, 1e-3), CLASSES)
  assert ridge == 1e-3  # the other one predicts the most frequent class
  np.testing.assert_array_equal(w, probe.least_squares(x, y, ridge, CLASSES)[0])
  assert features.accuracy((queries @ w + b).argmax(axis=1), truth)["top1"] > 0.8
  held = (concept % features.HELD_OUT) == features.HELD_OUT - 1
  best = max(
    (1e-4, 1e-2, 1.0),
    key=lambda r: sum(
      ((x[held] @ v + c).argmax(axis=1) == y[held]).sum()
      for v, c in [probe.least_squares(x[~held], y[~held], r, CLASSES)]
    ),
  )
  assert probe.fitted(x, y, concept, (1e-4, 1e-2, 1.0), CLASSES)[1] == best


def test_accuracy_is_scikit_learns():
  metrics = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(0)
  label, predicted = rng.integers(0, 5, (2, 50))
  got = features.accuracy(predicted, label)
  assert got == {
    "top1": pytest.approx(metrics.accuracy_score(label, predicted)),
    "mean_per_class": pytest.approx(metrics.balanced_accuracy_score(label, predicted)),
  }


def test_accuracy_counts_classes_alike():
  label = np.int32([0, 0, 0, 1])
  got = features.accuracy(np.zeros(4, np.int64), label)
  assert got == {"top1": 0.75, "mean_per_class": 0.5}


def test_evaluator_reads_both_splits_and_skips_the_unlabelled(context, params, split):
  evaluator = probe.Evaluator(context, k=1)
  got = evaluator.run(params)
  # The splits of the fake source are one: each row is its own nearest neighbour, but
  # for row 5, which is the same as row 3, of another class.
  assert got["group_knn_top1"] == 35 / 36 and got["group_n"] == 36
  assert {k.removeprefix("group_") for k in got} == {
    "knn_top1",
    "knn_mean_per_class",
    "ridge_top1",
    "ridge_mean_per_class",
    "ridge",
    "majority",
    "n",
  }
  kept = split.group[split.group >= 0]
  np.testing.assert_allclose(got["group_majority"], np.bincount(kept).max() / 36)
  assert got["group_ridge_top1"] >= got["group_majority"]
  assert context.encode.traced == 1


def test_errors(context, params):
  with pytest.raises(ValueError, match="no label 'kind', only"):
    probe.Evaluator(context, labels=("kind",)).run(params)
  with pytest.raises(ValueError, match=r"probe\.k = 0 must be at least 1"):
    probe.Evaluator(context, k=0)
