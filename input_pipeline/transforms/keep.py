"""What a source says of an example, handed on to the loss."""

import dataclasses

import numpy as np

from input_pipeline.interfaces import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Leaves the example as it is, and some of its numbers in the batch.

  Attributes:
    keys: of the example, such as "family"; their values are numbers or arrays.
  """

  keys: tuple[str, ...]

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the keys."""
    return self.keys

  writes = kept = reads

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example."""
    del rng
    return example
