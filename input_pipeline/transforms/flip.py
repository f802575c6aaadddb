"""A random mirror image."""

import dataclasses

import numpy as np

from input_pipeline.interfaces import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Mirrors `image` [h, w, 3] left to right, with probability p.

  Leave it out where left and right mean something: letters, arrows, flags, organs.
  """

  p: float = 0.5

  def __post_init__(self):
    if not 0 <= self.p <= 1:
      raise ValueError(f"flip: p = {self.p} must be in [0, 1]")

  reads = ("image",)
  writes = ("image",)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example, mirrored or as it is."""
    if rng.random() >= self.p:
      return example
    image = example["image"]
    mirrored = np.empty(image.shape, image.dtype)
    # A channel at a time: copying pixels of three bytes takes six times as long.
    for c in range(image.shape[-1]):
      mirrored[..., c] = image[:, ::-1][..., c]
    return example | {"image": mirrored}
