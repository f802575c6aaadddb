"""How far a classifier's probabilities can be believed, and how to mend them.

Temperature scaling and the expected calibration error are those of arXiv 1706.04599
(sections 4.2 and 2). A prior that the classifier made up is divided out: the mean of
its probabilities over unlabelled examples, where all classes should be as frequent.

Axis letters: n examples, c classes.
"""

import numpy as np

BINS = 15
RANGE = (1e-4, 1e2)  # of temperatures, for similarities in -1..1


def log_softmax(logits: np.ndarray) -> np.ndarray:
  """Returns f64[n, c], the logarithms of probabilities, from logits [n, c]."""
  x = logits.astype(np.float64)
  x = x - x.max(axis=1, keepdims=True)
  return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def nll(log_p: np.ndarray, label: np.ndarray) -> np.ndarray:
  """Returns f64[n]: minus the log-probability of the label i[n]."""
  return -np.take_along_axis(log_p, label[:, None].astype(np.int64), axis=1)[:, 0]


def temperature(similarity: np.ndarray, label: np.ndarray) -> float:
  """Returns the T within RANGE whose softmax(similarity / T) gives the least mean nll.

  The loss is convex in 1 / T: its slope is bisected.

  Args:
    similarity: f32[n, c].
    label: i[n] in 0..c-1.
  """
  x = similarity.astype(np.float64)
  own = np.take_along_axis(x, label[:, None].astype(np.int64), axis=1).mean()
  low, high = np.log(1 / RANGE[1]), np.log(1 / RANGE[0])
  for _ in range(40):
    middle = (low + high) / 2
    p = np.exp(log_softmax(x * np.exp(middle)))
    if (p * x).sum(axis=1).mean() > own:  # still too sure of it
      high = middle
    else:
      low = middle
  return float(np.exp(-(low + high) / 2))


def ece(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
  """Returns the mean gap of confidence and accuracy over bins of equal width.

  Args:
    confidence: f[n] in 0..1, of what was predicted.
    right: bool[n].
    bins: each holds its upper end; the first also 0.
  """
  at = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
  gaps = np.bincount(at, weights=confidence - right, minlength=bins)
  return float(np.abs(gaps).sum() / len(right))


def log_prior(log_p: np.ndarray) -> np.ndarray:
  """Returns f64[c]: the log of the mean probability, of log-probabilities [n, c]."""
  return np.log(np.maximum(np.exp(log_p).mean(axis=0), 1e-300))
