"""Graded relevance and ranks over languages: NDCG, mean rank variance.

NDCG is that of Jarvelin and Kekalainen (2002), with the gain linear in the relevance;
mean rank variance that of arXiv 2406.18254, which its code computes as the mean
deviation: both are given.
"""

import numpy as np


def ndcg(relevance: np.ndarray, scores: np.ndarray, k: int | None = None) -> np.ndarray:
  """Returns f64[n]: discounted gain of each query's order, over that of the best order.

  Items of equal score share the mean of their gains, as in scikit-learn's ndcg_score,
  so that a model to which all items are alike is not lucky. A query to which nothing is
  relevant gives 0.

  Args:
    relevance: [n, m], at least 0.
    scores: f32[n, m], higher is earlier.
    k: places that count; None: all.

  Raises:
    ValueError: shapes that differ, negative relevance or scores not finite.
  """
  if relevance.shape != scores.shape or scores.ndim != 2:
    raise ValueError(
      f"relevance {relevance.shape} and scores {scores.shape} must both be [n, m]"
    )
  if not np.isfinite(scores).all() or (relevance < 0).any():
    raise ValueError("scores must be finite, and relevance at least 0")
  m = scores.shape[1]
  discount = 1 / np.log2(np.arange(m) + 2)
  discount[m if k is None else k :] = 0.0
  gained = [_gain(r, s, discount) for r, s in zip(relevance, scores)]
  best = np.sort(relevance, axis=1)[:, ::-1] @ discount
  return np.where(best > 0, gained / np.maximum(best, 1e-300), 0.0)


def _gain(relevance: np.ndarray, scores: np.ndarray, discount: np.ndarray) -> float:
  _, tie, size = np.unique(-scores, return_inverse=True, return_counts=True)
  mean = np.bincount(tie, weights=relevance) / size
  ends = np.cumsum(size)
  until = np.concatenate([[0.0], np.cumsum(discount)])
  return float(mean @ (until[ends] - until[ends - size]))


def ranks(scores: np.ndarray, target: np.ndarray) -> np.ndarray:
  """Returns i64[n]: how many columns score at least as high as the target, besides it.

  0 is first; ties count against the query.

  Args:
    scores: f32[n, m].
    target: i[n], the right column of each row.
  """
  own = np.take_along_axis(scores, target[:, None], axis=1)
  return (scores >= own).sum(axis=1) - 1


def mean_rank_variance(ranks: np.ndarray) -> dict[str, float]:
  """Returns "mrv" and "mrd": variance and deviation over languages, mean of instances.

  Args:
    ranks: [n, l], of each instance's query in each of l languages.

  Raises:
    ValueError: fewer than two languages.
  """
  if ranks.ndim != 2 or ranks.shape[1] < 2:
    raise ValueError(f"ranks {ranks.shape} must be [n, l] of two languages or more")
  variance = ranks.astype(np.float64).var(axis=1)
  return {"mrv": float(variance.mean()), "mrd": float(np.sqrt(variance).mean())}
