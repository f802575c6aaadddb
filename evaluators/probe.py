"""What a simple classifier reads from the frozen embedding of one modality.

k nearest neighbours, and least squares with a ridge, in closed form: both see the
embeddings of a labelled split, as the towers give them, before any head of an
objective. Nothing is trained by steps, so that no setting of a probe hides in a result.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from evaluators import context as context_lib
from evaluators.context import Context, Embedded
from model.types import Params

HELD_OUT = 5  # every fifth concept of the training embeddings chooses the ridge


def nearest(
  train: np.ndarray,
  label: np.ndarray,
  queries: np.ndarray,
  *,
  k: int,
  classes: int,
  tile: int = 1024,
) -> np.ndarray:
  """Returns i64[n]: the class most frequent among the k most similar training rows.

  Of equally frequent classes the first; of equally similar rows the first.

  Args:
    train: f32[m, d], unit norm.
    label: i32[m] in 0..classes-1.
    queries: f32[n, d], unit norm.
    k: neighbours, at most m.
    classes: how many there are.
    tile: queries compared at a time.
  """
  k, votes = min(k, len(train)), []
  for start in range(0, len(queries), tile):
    similarity = queries[start : start + tile] @ train.T
    near = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    count = np.zeros((len(near), classes), np.int64)
    np.add.at(count, (np.arange(len(near))[:, None], label[near]), 1)
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
  _, place = np.unique(concept, return_inverse=True)
  held = place % HELD_OUT == HELD_OUT - 1
  best, right = ridges[0], -1
  if held.any() and len(ridges) > 1:
    for ridge in ridges:
      w, b = least_squares(train[~held], label[~held], ridge, classes)
      hits = int(((train[held] @ w + b).argmax(axis=1) == label[held]).sum())
      if hits > right:
        best, right = ridge, hits
  return least_squares(train, label, best, classes), best


def accuracy(predicted: np.ndarray, label: np.ndarray) -> dict[str, float]:
  """Returns top1 and mean_per_class, of the classes that label i32[n] has."""
  right = predicted == label
  per_class = [right[label == c].mean() for c in np.unique(label)]
  return {"top1": float(right.mean()), "mean_per_class": float(np.mean(per_class))}


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
    ridges: to choose from, of squared weights, for each example.
    batch_size: global; 0 is config.batch_size.
    source: changes to the source's options, for both splits.
  """

  context: Context
  _: dataclasses.KW_ONLY
  name: str = "probe"
  split: str = "test"
  train: str = "train"
  labels: tuple[str, ...] = ("group",)
  modality: str = "image"
  k: int = 10
  ridges: tuple[float, ...] = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
  batch_size: int = 0
  source: Mapping[str, Any] | None = None

  def __post_init__(self):
    if self.k < 1 or not self.ridges or min(self.ridges) <= 0:
      raise ValueError(
        f"probe.k = {self.k} must be at least 1, and probe.ridges = {self.ridges} some "
        "numbers above 0"
      )

  def run(self, params: Params) -> dict[str, float]:
    """Returns <label>_knn_top1, <label>_ridge_top1 and so on.

    Raises:
      ValueError: a label that the source does not have, or no examples of it.
    """
    train, test = (self._embed(params, split) for split in (self.train, self.split))
    metrics = {}
    for label in self.labels:
      for key, value in self._probe(train, test, label).items():
        metrics[f"{label}_{key}"] = value
    return metrics

  def _embed(self, params: Params, split: str) -> Embedded:
    return context_lib.embed(
      self.context,
      params,
      split=split,
      modalities=(self.modality,),
      batch_size=self.batch_size,
      options=self.source,
    )

  def _probe(self, train: Embedded, test: Embedded, label: str) -> dict[str, float]:
    (x, y, concept), (queries, truth, _) = (
      self._known(e, label) for e in (train, test)
    )
    classes = int(max(y.max(), truth.max())) + 1
    near = nearest(x, y, queries, k=self.k, classes=classes)
    (w, b), ridge = fitted(x, y, concept, self.ridges, classes)
    linear = (queries @ w + b).argmax(axis=1)
    usual = np.bincount(y).argmax()
    return {
      **{f"knn_{key}": v for key, v in accuracy(near, truth).items()},
      **{f"ridge_{key}": v for key, v in accuracy(linear, truth).items()},
      "ridge": float(ridge),
      "majority": float((truth == usual).mean()),
      "n": float(len(truth)),
    }

  def _known(
    self, embedded: Embedded, label: str
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the embeddings, labels and ids of labelled examples."""
    if label not in embedded.labels:
      raise ValueError(
        f"probe.labels: the source has no label {label!r}, only "
        f"{sorted(embedded.labels)}"
      )
    rows = embedded.labels[label] >= 0
    z = embedded.z[self.modality][rows]
    if not len(z) or not np.isfinite(z).all():
      raise ValueError(
        f"probe needs examples with a label {label!r}, and embeddings that are finite: "
        f"got {len(z)} examples{'' if not len(z) else '; the model diverged'}"
      )
    return z, embedded.labels[label][rows], embedded.id[rows]
