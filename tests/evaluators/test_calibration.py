"""Calibration against scikit-learn, and by hand."""

import numpy as np
import pytest

from evaluators import calibration, zero_shot

N, C = 400, 8


def data(seed=0):
  rng = np.random.default_rng(seed)
  label = rng.integers(0, C, N)
  similarity = rng.uniform(-0.2, 0.2, (N, C)).astype(np.float32)
  similarity[np.arange(N), label] += 0.1
  return similarity, label


def test_nll_is_scikit_learns_log_loss():
  metrics = pytest.importorskip("sklearn.metrics")
  similarity, label = data()
  log_p = calibration.log_softmax(similarity / 0.1)
  want = metrics.log_loss(label, np.exp(log_p), labels=range(C))
  assert calibration.nll(log_p, label).mean() == pytest.approx(want, abs=1e-12)


def test_the_temperature_is_the_best_of_a_grid():
  similarity, label = data()
  grid = np.geomspace(*calibration.RANGE, 400)
  loss = [
    calibration.nll(calibration.log_softmax(similarity / t), label).mean() for t in grid
  ]
  best = int(np.argmin(loss))
  got = calibration.temperature(similarity, label)
  assert grid[best - 1] < got < grid[best + 1]
  at = calibration.nll(calibration.log_softmax(similarity / got), label).mean()
  assert at <= min(loss) + 1e-12


def test_a_model_that_is_always_or_never_right_has_a_temperature_at_the_ends():
  similarity = np.eye(C, dtype=np.float32)
  low, high = calibration.RANGE
  assert calibration.temperature(similarity, np.arange(C)) == pytest.approx(
    low, rel=1e-3
  )
  wrong = (np.arange(C) + 1) % C
  assert calibration.temperature(similarity, wrong) == pytest.approx(high, rel=1e-3)


def test_ece_by_hand():
  confidence = np.array([0.0, 0.05, 0.1, 0.15, 0.95, 1.0])
  right = np.array([False, True, False, False, True, False])
  gaps = 0.0
  for b in range(10):
    inside = (confidence > b / 10) & (confidence <= (b + 1) / 10)
    if b == 0:
      inside |= confidence == 0
    if inside.any():
      gaps += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
  assert calibration.ece(confidence, right, bins=10) == pytest.approx(gaps)
  assert calibration.ece(np.ones(4), np.ones(4, bool)) == 0.0


def test_a_prior_that_the_model_made_up_is_taken_off():
  similarity, label = data()
  biased = similarity.copy()
  biased[:, 2] += 0.3  # as if this class were everywhere
  fair, got = (
    zero_shot.calibrated(x, label, x, label)["prior_top1"] for x in (similarity, biased)
  )
  assert (biased.argmax(axis=1) == label).mean() < fair - 0.1
  assert got > fair - 0.05


def test_top_k_and_mean_per_class_are_scikit_learns():
  metrics = pytest.importorskip("sklearn.metrics")
  similarity, label = data(1)
  label[label == 7] = 3  # a class without examples
  rank = zero_shot.ranks(similarity, label)
  got = zero_shot.summarise(rank, label, C)
  top = [
    metrics.top_k_accuracy_score(label, similarity, k=k, labels=range(C))
    for k in (1, 5)
  ]
  assert (got["top1"], got["top5"]) == tuple(map(pytest.approx, top))
  predicted = similarity.argmax(axis=1)
  seen = [np.mean(predicted[label == c] == c) for c in range(7)]
  want = metrics.recall_score(label, predicted, labels=range(7), average="macro")
  assert got["mean_per_class"] == pytest.approx(want) == pytest.approx(np.mean(seen))
