"""Pairs of different things: the picture of one example, the captions of another."""

import dataclasses

import numpy as np

from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Takes the captions from a random example, and says of which class they are.

  Writes `captions` and `label_<name>_other`; `label_<name>` stays the picture's. Drops
  "unlabelled" where either side is of no class.

  Attributes:
    label: the name of the label.
    share: probability that the captions are another's; else they are its own.
  """

  label: str
  share: float = 1.0

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns captions, label, and "partner": another example of the source."""
    return ("captions", f"label_{self.label}", "partner")

  @property
  def writes(self) -> tuple[str, ...]:
    """Returns captions and the key of the second label."""
    return ("captions", f"label_{self.label}_other")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with the captions of its own or of its partner."""
    key = f"label_{self.label}"
    other = example["partner"] if rng.random() < self.share else example
    if min(int(example[key]), int(other[key])) < 0:
      raise Drop("unlabelled")
    return example | {"captions": other["captions"], f"{key}_other": other[key]}
