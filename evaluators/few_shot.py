"""Few-shot classification: least squares on n examples of each class.

The fast and deterministic transfer of arXiv 2010.11929 (section 4.1), as big_vision has
it: features are standardised, targets are -1 and 1, and a constant feature, large
enough to escape the ridge, is the bias. The ridge is chosen by the squared
error for each training example of a fit without it, in closed form (Allen's PRESS):
hits of so few examples tie, and big_vision's choice looks at a test set.

Axis letters: m training examples, n test examples, d features, c classes.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, ClassVar

import numpy as np

from evaluators import bootstrap, features
from evaluators.context import Context
from evaluators.features import Labelled
from model.types import Params

BIAS = 100.0  # the constant feature


def fit(
  x: np.ndarray, y: np.ndarray, classes: int, ridges: Sequence[float]
) -> tuple[np.ndarray, float]:
  """Returns f64[d, c], the weights, and the ridge that was chosen.

  Minimises |x w - y|^2 + ridge |w|^2 with y in {-1, 1}.

  Args:
    x: f64[m, d].
    y: i[m] in 0..c-1.
    classes: c.
    ridges: to choose from.
  """
  target = 2.0 * np.eye(classes)[y] - 1.0
  # x = u s v: each ridge then costs a product, and so does leaving out each example.
  u, s, v = np.linalg.svd(x, full_matrices=False)
  along = u.T @ target
  best, least = ridges[0], np.inf
  for ridge in ridges:
    share = s**2 / (s**2 + ridge)
    fitted = u @ (share[:, None] * along)
    leverage = np.einsum("mk,k,mk->m", u, share, u)
    # The error for an example of a fit without it.
    error = (target - fitted) / np.maximum(1 - leverage, 1e-9)[:, None]
    if (total := float((error**2).sum())) < least:
      best, least = ridge, total
  return v.T @ ((s / (s**2 + best))[:, None] * along), best


def standardised(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns both, f64[_, d + 1], by the mean and deviation of the training examples."""
  mean, std = train.mean(axis=0), train.std(axis=0) + 1e-5

  def one(x):
    x = (x.astype(np.float64) - mean) / std
    return np.pad(x, ((0, 0), (0, 1)), constant_values=BIAS)

  return one(train), one(test)


def draw(y: np.ndarray, shots: int, rng: np.random.Generator) -> np.ndarray:
  """Returns i64[_]: rows of y i[m], `shots` of each class, or all of a smaller one."""
  order = rng.permutation(len(y))
  place = np.zeros(len(y), np.int64)
  for c in np.unique(y):
    own = y[order] == c
    place[own] = np.arange(own.sum())
  return np.sort(order[place < shots])


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Accuracy of least squares on a few examples of each class, mean of several draws.

  Attributes:
    context: mesh, encode function and recipe.
    name: of the results.
    split: of config.data.source, to classify.
    train: the split of which examples are drawn.
    labels: label names; each is a classification of its own.
    modality: to classify by.
    shots: examples of each class.
    seeds: of the draws; results are means over them.
    ridges: to choose from.
    batch_size: global; 0 is config.batch_size.
    source: changes to the source's options, for both splits.
    bootstrap: resamples for 95% intervals, <metric>_low and <metric>_high; 0: none.
  """

  version: ClassVar[int] = 1

  context: Context
  _: dataclasses.KW_ONLY
  name: str = "few_shot"
  split: str = "test"
  train: str = "train"
  labels: tuple[str, ...] = ("group",)
  modality: str = "image"
  shots: tuple[int, ...] = (1, 5, 10)
  seeds: tuple[int, ...] = (0, 1, 2)
  ridges: tuple[float, ...] = tuple(2.0**e for e in range(-10, 21, 2))
  batch_size: int = 0
  source: Mapping[str, Any] | None = None
  bootstrap: int = 0

  def __post_init__(self):
    if not self.shots or min(self.shots) < 1 or not self.seeds or not self.ridges:
      raise ValueError(
        f"few_shot.shots = {self.shots} must be numbers above 0, and seeds = "
        f"{self.seeds} and ridges = {self.ridges} not empty"
      )
    if min(self.ridges) <= 0:
      raise ValueError(f"few_shot.ridges = {self.ridges} must be above 0")

  def run(self, params: Params) -> dict[str, float]:
    """Returns <label>_<n>shot_top1 and so on.

    Raises:
      ValueError: a label that the source does not have, or no examples of it.
    """
    how = (self.modality, self.batch_size, self.source)
    embedded = [
      features.embed(self.context, params, s, *how) for s in (self.train, self.split)
    ]
    metrics: dict[str, float] = {}
    queries: dict[str, np.ndarray] = {}
    for label in self.labels:
      train, test = (
        features.labelled(e, self.modality, label, self.name) for e in embedded
      )
      right = {f"{n}shot_top1": self._right(train, test, n) for n in self.shots}
      found = bootstrap.means(right, self.bootstrap)
      metrics |= {f"{label}_{key}": value for key, value in found.items()}
      queries |= {f"{label}_{key}": value for key, value in right.items()}
      metrics[f"{label}_majority"] = features.majority(train.y, test.y)
      metrics[f"{label}_n"] = float(len(test.y))
    if self.bootstrap:
      bootstrap.save(self.context, self.name, queries)
    return metrics

  def _right(self, train: Labelled, test: Labelled, shots: int) -> np.ndarray:
    """Returns f64[n]: how often each test example was right, over the seeds."""
    classes = int(max(train.y.max(), test.y.max())) + 1
    right = np.zeros(len(test.y))
    for seed in self.seeds:
      rows = draw(train.y, shots, np.random.default_rng(seed))
      x, queries = standardised(train.x[rows], test.x)
      w, _ = fit(x, train.y[rows], classes, self.ridges)
      right += (queries @ w).argmax(axis=1) == test.y
    return right / len(self.seeds)
