"""Labelled embeddings of frozen towers: what probes learn from and are scored on."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from evaluators import bootstrap
from evaluators import context as context_lib
from evaluators.context import Context, Embedded
from model.types import Params

HELD_OUT = 5  # every fifth concept of the training examples chooses a setting


@dataclasses.dataclass(frozen=True)
class Labelled:
  """The examples of a split that have a label.

  Attributes:
    x: f32[n, ...], of one modality.
    y: i32[n], at least 0.
    concept: i32[n]; rows of one concept stay together.
    mask: bool[n, t] of tokens, or None.
  """

  x: np.ndarray
  y: np.ndarray
  concept: np.ndarray
  mask: np.ndarray | None = None

  def rows(self, keep: np.ndarray) -> "Labelled":
    """Returns some rows, bool[n] or i[n]."""
    mask = None if self.mask is None else self.mask[keep]
    return Labelled(self.x[keep], self.y[keep], self.concept[keep], mask)


def embed(
  context: Context,
  params: Params,
  split: str,
  modality: str,
  batch_size: int,
  source: Mapping[str, Any] | None,
  read: str = "embeddings",
) -> Embedded:
  """Returns one modality of a split, as `context.embed` does."""
  return context_lib.embed(
    context,
    params,
    split=split,
    modalities=(modality,),
    batch_size=batch_size,
    options=source,
    read=read,
  )


def labelled(embedded: Embedded, modality: str, label: str, where: str) -> Labelled:
  """Returns the examples of an embedded split that have a label.

  Args:
    embedded: a split.
    modality: of it.
    label: its name.
    where: the evaluator's, for the message.

  Raises:
    ValueError: no such label, no example that has one, or embeddings not finite.
  """
  if label not in embedded.labels:
    raise ValueError(
      f"{where}.labels: the source has no label {label!r}, only "
      f"{sorted(embedded.labels)}"
    )
  rows = embedded.labels[label] >= 0
  x = embedded.z[modality][rows]
  if not len(x) or not np.isfinite(x).all():
    raise ValueError(
      f"{where} needs examples with a label {label!r}, and embeddings that are finite: "
      f"got {len(x)} examples{'' if not len(x) else '; the model diverged'}"
    )
  mask = embedded.z.get(f"{modality}_mask")
  return Labelled(
    x,
    embedded.labels[label][rows],
    embedded.id[rows],
    None if mask is None else mask[rows],
  )


def held_out(concept: np.ndarray) -> np.ndarray:
  """Returns bool[n]: the rows of every fifth concept, for choosing settings."""
  _, place = np.unique(concept, return_inverse=True)
  return place % HELD_OUT == HELD_OUT - 1


def accuracy(
  predicted: np.ndarray, label: np.ndarray, draws: int = 0
) -> dict[str, float]:
  """Returns top1 and mean_per_class, of the classes that label i32[n] has.

  With draws, resamples, top1 has an interval.
  """
  right = predicted == label
  per_class = [right[label == c].mean() for c in np.unique(label)]
  top1 = bootstrap.means({"top1": right}, draws)
  return top1 | {"mean_per_class": float(np.mean(per_class))}


def majority(train: np.ndarray, test: np.ndarray) -> float:
  """Returns how often the most frequent training label i[m] is right in test i[n]."""
  return float((test == np.bincount(train).argmax()).mean())
