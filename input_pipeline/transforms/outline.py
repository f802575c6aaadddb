"""Inks the edges of a drawing: how they are drawn must not matter."""

import dataclasses

import numpy as np

from input_pipeline.interfaces import Example

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Darkens `image` (uint8 or f32 in 0..255) at its edges, to f32 in 0..255.

  Drawing styles differ in their lines more than in their shapes: some ink every contour
  and some none. A pixel is darkened by strength * min(1, gain * |gradient|), with the
  gradient of the grey image between neighbours, in units of white.

  Attributes:
    p: probability that anything is inked.
    strength: least and most darkening of a full edge; 1 is black.
    gain: how faint an edge is still inked in full: one of 1 / gain is.
  """

  p: float = 0.5
  strength: tuple[float, float] = (0.5, 1.0)
  gain: float = 4.0

  reads = ("image",)
  writes = ("image",)

  def __post_init__(self):
    low, high = self.strength
    if not 0 <= low <= high <= 1 or not 0 <= self.p <= 1 or self.gain <= 0:
      raise ValueError(
        f"outline: strength = {self.strength} must lie in order in [0, 1], p = {self.p}"
        f" in [0, 1], and gain = {self.gain} above 0"
      )

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with `image` f32[h, w, 3]."""
    image = example["image"].astype(np.float32)
    drawn, share = rng.random(2)
    if drawn < self.p:
      low, high = self.strength
      edges = np.minimum(self.gain * _gradient(image @ _LUMA / 255.0), 1.0)
      image *= 1.0 - (low + (high - low) * np.float32(share)) * edges[..., None]
    return example | {"image": image}


def _gradient(gray: np.ndarray) -> np.ndarray:
  """Returns f32[h, w]: the larger step to the right or downwards; 0 at the border."""
  steps = np.zeros_like(gray)
  steps[:, :-1] = np.abs(np.diff(gray, axis=1))
  steps[:-1] = np.maximum(steps[:-1], np.abs(np.diff(gray, axis=0)))
  return steps
