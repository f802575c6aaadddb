"""Pixels to the range that the towers read."""

import dataclasses
import functools

import numpy as np

from input_pipeline.interfaces import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Maps `image` (uint8 or f32 in 0..255) to f32: (image / 255 - mean) / std."""

  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)

  reads = ("image",)
  writes = ("image",)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with `image` f32[h, w, 3]."""
    image = example["image"]
    height, width = image.shape[:2]
    scale, offset = _rows(self.mean, self.std, width)
    flat = np.multiply(image.reshape(height, width * 3), scale, dtype=np.float32)
    flat -= offset
    return example | {"image": flat.reshape(height, width, 3)}


@functools.lru_cache(maxsize=16)
def _rows(
  mean: tuple[float, ...], std: tuple[float, ...], width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns scale and offset of one row of pixels, f32[width * 3].

  NumPy loops over the last axis: over three channels at a time it is ten times slower.
  """
  scale = np.tile(1 / (255 * np.asarray(std)), width)
  offset = np.tile(np.asarray(mean) / np.asarray(std), width)
  return scale.astype(np.float32), offset.astype(np.float32)
