"""NDCG against scikit-learn's and a plain loop; rank variance against a plain loop."""

import math

import numpy as np
import pytest

from evaluators import ranking


def scored(n=6, m=9, ties=False):
  rng = np.random.default_rng(0)
  relevance = rng.integers(0, 4, (n, m)).astype(float)
  scores = rng.integers(0, 4, (n, m)) if ties else rng.normal(size=(n, m))
  return relevance, scores.astype(np.float32)


@pytest.mark.parametrize("k", [None, 1, 4, 20])
@pytest.mark.parametrize("ties", [False, True])
def test_ndcg_is_scikit_learns(k, ties):
  metrics = pytest.importorskip("sklearn.metrics")
  relevance, scores = scored(ties=ties)
  relevance[2] = 0.0
  expected = metrics.ndcg_score(relevance, scores, k=k)
  assert ranking.ndcg(relevance, scores, k).mean() == pytest.approx(expected, abs=1e-12)


def test_ndcg_is_a_plain_loops():
  relevance, scores = scored()
  for r, s, found in zip(relevance, scores, ranking.ndcg(relevance, scores, 3)):
    order = sorted(range(len(s)), key=lambda j: -s[j])
    gain = sum(r[j] / math.log2(place + 2) for place, j in enumerate(order[:3]))
    best = sum(x / math.log2(p + 2) for p, x in enumerate(sorted(r, reverse=True)[:3]))
    assert found == pytest.approx(gain / best)


def test_ndcg_of_a_model_that_tells_nothing_apart_is_that_of_a_random_order():
  relevance, _ = scored(n=1)
  rng = np.random.default_rng(1)
  random = rng.permuted(np.tile(np.arange(9.0), (3000, 1)), axis=1)
  chance = ranking.ndcg(np.tile(relevance, (3000, 1)), random, 4).mean()
  assert ranking.ndcg(relevance, np.zeros((1, 9)), 4)[0] == pytest.approx(
    chance, abs=0.01
  )


def test_ndcg_refuses_what_it_cannot_order():
  relevance, scores = scored()
  with pytest.raises(ValueError, match="must both be"):
    ranking.ndcg(relevance[:2], scores)
  with pytest.raises(ValueError, match="finite"):
    ranking.ndcg(relevance, scores * np.nan)
  with pytest.raises(ValueError, match="at least 0"):
    ranking.ndcg(-relevance, scores)


def test_rank_variance_is_a_plain_loops():
  rng = np.random.default_rng(0)
  scores = [rng.integers(0, 5, (7, 7)) for _ in range(3)]
  target = np.arange(7)
  found = np.stack([ranking.ranks(s, target) for s in scores], axis=1)
  variances = []
  for i in range(7):
    own = [sum(s[i, j] >= s[i, i] for j in range(7) if j != i) for s in scores]
    assert found[i].tolist() == own
    mean = sum(own) / 3
    variances.append(sum((r - mean) ** 2 for r in own) / 3)
  result = ranking.mean_rank_variance(found)
  assert result["mrv"] == pytest.approx(sum(variances) / 7)
  assert result["mrd"] == pytest.approx(sum(v**0.5 for v in variances) / 7)
  with pytest.raises(ValueError, match="two languages"):
    ranking.mean_rank_variance(found[:, :1])
