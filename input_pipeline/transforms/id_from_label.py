"""Classes as concepts: every example of a class is a positive of every other."""

import dataclasses

import numpy as np

from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `id`, by which losses tell positives, from a label; drops "unlabelled".

  For training only: evaluators match by the source's own ids.

  Attributes:
    label: the name, of `label_<name>`.
  """

  label: str

  writes = ("id",)

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the key of the label."""
    return (f"label_{self.label}",)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with the label as its id."""
    del rng
    label = int(example[f"label_{self.label}"])
    if label < 0:
      raise Drop("unlabelled")
    return example | {"id": label}
