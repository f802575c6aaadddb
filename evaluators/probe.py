"""What a simple classifier reads from the frozen embedding of one modality.

k nearest neighbours, and least squares with a ridge, in closed form: both see the
embeddings of a labelled split, as the towers give them, before any head of an
objective. Nothing is trained by steps, so that no setting of a probe hides in a result.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, ClassVar

import numpy as np

from evaluators import bootstrap, features
from evaluators.context import Context
from evaluators.features import Labelled
from model.types import Params


def nearest(
  train: np.ndarray,
  label: np.ndarray,
  queries: np.ndarray,
  *,
  k: int,
  classes: int,
  temperature: float = 0.0,
  tile: int = 1024,
) -> np.ndarray:
  """Returns i64[n]: the class most frequent among the k most similar training rows.

  With a temperature, each row's vote weighs exp(similarity / temperature), as in arXiv
  1805.01978 (section 3.4).

  Of equally frequent classes the first; of equally similar rows the first.

  Args:
    train: f32[m, d], unit norm.
    label: i32[m] in 0..classes-1.
    queries: f32[n, d], unit norm.
    k: neighbours, at most m.
    classes: how many there are.
    temperature: 0 counts votes alike.
    tile: queries compared at a time.
  """
  k, votes = min(k, len(train)), []
  for start in range(0, len(queries), tile):
    similarity = queries[start : start + tile] @ train.T
    near = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    weight: Any = 1.0
    if temperature:
      score = np.take_along_axis(similarity, near, 1).astype(np.float64)
      weight = np.exp((score - score[:, :1]) / temperature)  # the nearest weighs 1
    count = np.zeros((len(near), classes))
    np.add.at(count, (np.arange(len(near))[:, None], label[near]), weight)
    votes.append(count.argmax(axis=1))
  return np.concatenate(votes)


def least_squares(
  train: np.ndarray, label: np.ndarray, ridge: float, classes: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (f64[d, classes], f64[classes]): weights and bias that fit one-hot labels.

  Minimises |x w + b - onehot|^2 + ridge * m * |w|^2 over the m rows.
  """
  x, y = train.astype(np.float64), np.eye(classes)[label]
  mean, share = x.mean(axis=0), y.mean(axis=0)
  x = x - mean
  penalty = ridge * len(x) * np.eye(x.shape[1])
  w = np.linalg.solve(x.T @ x + penalty, x.T @ (y - share))
  return w, share - mean @ w


def fitted(
  train: np.ndarray,
  label: np.ndarray,
  concept: np.ndarray,
  ridges: Sequence[float],
  classes: int,
) -> tuple[tuple[np.ndarray, np.ndarray], float]:
  """Returns (weights, bias) and the ridge, chosen on concepts that the fit left out.

  Args:
    train: f32[m, d].
    label: i32[m] in 0..classes-1.
    concept: i32[m]; rows of one concept stay together.
    ridges: to choose from; the first of the best is taken, then fitted to all rows.
    classes: how many there are.
  """
  held = features.held_out(concept)
  best, right = ridges[0], -1
  if held.any() and len(ridges) > 1:
    for ridge in ridges:
      w, b = least_squares(train[~held], label[~held], ridge, classes)
      hits = int(((train[held] @ w + b).argmax(axis=1) == label[held]).sum())
      if hits > right:
        best, right = ridge, hits
  return least_squares(train, label, best, classes), best


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Accuracy of nearest neighbours and of least squares for each label of the source.

  Attributes:
    context: mesh, encode function and recipe.
    name: of the results.
    split: of config.data.source, to classify.
    train: the split whose labels are known.
    labels: label names; each is a classification of its own.
    modality: to classify by.
    k: neighbours.
    temperature: of the neighbours' votes; 0 counts them alike.
    ridges: to choose from, of squared weights, for each example.
    batch_size: global; 0 is config.batch_size.
    source: changes to the source's options, for both splits.
    bootstrap: resamples for 95% intervals, <metric>_low and <metric>_high; 0: none.
  """

  version: ClassVar[int] = 1

  context: Context
  _: dataclasses.KW_ONLY
  name: str = "probe"
  split: str = "test"
  train: str = "train"
  labels: tuple[str, ...] = ("group",)
  modality: str = "image"
  k: int = 10
  temperature: float = 0.0
  ridges: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
  batch_size: int = 0
  source: Mapping[str, Any] | None = None
  bootstrap: int = 0

  def __post_init__(self):
    if self.k < 1 or not self.ridges or min(self.ridges) <= 0 or self.temperature < 0:
      raise ValueError(
        f"probe.k = {self.k} must be at least 1, probe.ridges = {self.ridges} some "
        f"numbers above 0, and probe.temperature = {self.temperature} none below 0"
      )

  def run(self, params: Params) -> dict[str, float]:
    """Returns <label>_knn_top1, <label>_ridge_top1 and so on.

    Raises:
      ValueError: a label that the source does not have, or no examples of it.
    """
    how = (self.modality, self.batch_size, self.source)
    embedded = [
      features.embed(self.context, params, split, *how)
      for split in (self.train, self.split)
    ]
    metrics: dict[str, float] = {}
    queries: dict[str, np.ndarray] = {}
    for label in self.labels:
      data = [features.labelled(e, self.modality, label, self.name) for e in embedded]
      found, right = self._probe(*data)
      metrics |= {f"{label}_{key}": value for key, value in found.items()}
      queries |= {f"{label}_{key}": value for key, value in right.items()}
    if self.bootstrap:
      bootstrap.save(self.context, self.name, queries)
    return metrics

  def _probe(
    self, train: Labelled, test: Labelled
  ) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns the metrics, and which test examples each probe got right."""
    classes = int(max(train.y.max(), test.y.max())) + 1
    near = nearest(
      train.x,
      train.y,
      test.x,
      k=self.k,
      classes=classes,
      temperature=self.temperature,
    )
    (w, b), ridge = fitted(train.x, train.y, train.concept, self.ridges, classes)
    predicted = {"knn": near, "ridge": (test.x @ w + b).argmax(axis=1)}
    metrics = {
      f"{probe}_{key}": value
      for probe, found in predicted.items()
      for key, value in features.accuracy(found, test.y, self.bootstrap).items()
    }
    metrics |= {
      "ridge": float(ridge),
      "majority": features.majority(train.y, test.y),
      "n": float(len(test.y)),
    }
    return metrics, {f"{p}_top1": found == test.y for p, found in predicted.items()}
