"""Labels as numbers: what is known of an example besides its modalities."""

import dataclasses

import numpy as np

from input_pipeline.interfaces import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes f32[sum of sizes]: the one-hot vectors of some labels, one after another.

  A label of -1, unlabelled, is all zeros. Losses that compare examples by a vector of
  attributes read it from the batch.

  Attributes:
    labels: (name, number of classes) each, of `label_<name>`.
    key: what it writes, and the batch's key.

  Raises:
    ValueError: a label that is not below its number of classes.
  """

  labels: tuple[tuple[str, int], ...]
  key: str = "condition"

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the keys of the labels."""
    return tuple(f"label_{name}" for name, _ in self.labels)

  @property
  def writes(self) -> tuple[str, ...]:
    """Returns the key of the vector."""
    return (self.key,)

  kept = writes

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with the vector."""
    del rng
    parts = []
    for name, size in self.labels:
      label = int(example[f"label_{name}"])
      if label >= size:
        raise ValueError(
          f"one_hot.labels gives {name!r} {size} classes, but label_{name} = {label}"
        )
      parts.append((np.arange(size) == label).astype(np.float32))
    return example | {self.key: np.concatenate(parts)}
