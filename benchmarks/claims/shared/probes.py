"""What a tiny run's embeddings are worth: neighbours, linear probes, retrieval."""

import numpy as np

from evaluators import gallery

Labelled = tuple[np.ndarray, np.ndarray]  # (x f32[n, d], y [n] or [n, k])


def knn(train: Labelled, test: Labelled, k: int = 5) -> float:
  """Returns the accuracy of the majority of the k most similar (cosine) examples.

  Of equally many the class of the nearer wins: weights fall a little with the rank.
  """
  (x, y), (queries, truth) = train, test
  x, queries = _unit(x), _unit(queries)
  near = np.argsort(-(queries @ x.T), axis=1, kind="stable")[:, :k]
  votes = np.zeros((len(queries), int(y.max()) + 1))
  weight = 1.0 - 1e-3 * np.arange(k)
  np.add.at(votes, (np.arange(len(queries))[:, None], y[near]), weight[None, :])
  return float((votes.argmax(axis=1) == truth).mean())


def linear(train: Labelled, test: Labelled, ridge: float = 1e-2) -> float:
  """Returns the accuracy of ridge regression to one-hot classes.

  Args:
    train: (x f32[n, d], y i[n]).
    test: the same.
    ridge: in units of the mean square of a standardised feature.
  """
  (x, y), (queries, truth) = train, test
  one_hot = np.eye(int(y.max()) + 1)[y]
  return float((predict(x, one_hot, queries, ridge).argmax(axis=1) == truth).mean())


def r2(train: Labelled, test: Labelled, ridge: float = 1e-2) -> float:
  """Returns R^2 of ridge regression to y f32[n] or [n, k], mean over columns, >= -1."""
  (x, y), (queries, truth) = train, test
  y, truth = y.reshape(len(y), -1), truth.reshape(len(truth), -1)
  left = ((predict(x, y, queries, ridge) - truth) ** 2).mean(axis=0)
  return float(np.maximum(1 - left / truth.var(axis=0), -1.0).mean())


def separability(a: np.ndarray, b: np.ndarray) -> float:
  """Returns how well a linear classifier tells rows of a from rows of b, 0.5..1.

  Fitted on the first half of each, measured on the second.
  """
  half = len(a) // 2
  label = np.repeat([0, 1], half)
  fit = np.concatenate([a[:half], b[:half]]), label
  return linear(fit, (np.concatenate([a[half : 2 * half], b[half : 2 * half]]), label))


def recall(x: np.ndarray, y: np.ndarray, k: int = 1) -> float:
  """Returns recall at k of x_i for y_i [n, d] and back, the mean of both directions."""
  ids = np.arange(len(x))
  found = (gallery.search(a, b, ids, ids).rank for a, b in ((x, y), (y, x)))
  return float(np.mean([(rank < k).mean() for rank in found]))


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
  """Returns the chance that a positive scores above a negative; ties count a half."""
  order = np.sort(negative)
  below = np.searchsorted(order, positive, "left")
  upto = np.searchsorted(order, positive, "right")
  return float(((below + upto) / 2).mean() / len(negative))


def predict(x, y, queries, ridge: float = 1e-2) -> np.ndarray:
  """Returns f64[m, k]: ridge regression of y [n, k] on x [n, d], at queries [m, d].

  `ridge` is in units of the mean square of a standardised feature.
  """
  mean, deviation = x.mean(axis=0), x.std(axis=0) + 1e-6
  a, q = ((v.astype(np.float64) - mean) / deviation for v in (x, queries))
  gram = a.T @ a + ridge * len(a) * np.eye(a.shape[1])
  return q @ np.linalg.solve(gram, a.T @ (y - y.mean(axis=0))) + y.mean(axis=0)


def _unit(x: np.ndarray) -> np.ndarray:
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6)
