"""Pixels to the range that the towers read."""

import dataclasses
import functools
import math

import numpy as np

from input_pipeline.interfaces import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Maps `image` (uint8 or f32 in 0..255) to f32: (image / 255 - mean) / std.

  Attributes:
    mean: of the channels, in 0..1.
    std: of the channels, above 0.
    device: leaves the image as it is and writes `image_affine` f32[2, 3], the scale and
      the offset that `sharding.placement.put_batch` applies to it on the device. Bytes
      are a quarter of what floats are to stack, to copy and to send. Last of what
      changes the image, and for what `put_batch` takes: training and evaluation.

  Raises:
    ValueError: other than three numbers, or numbers out of these ranges.
  """

  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)
  device: bool = False

  reads = ("image",)

  def __post_init__(self):
    for key, sound in (
      ("mean", lambda x: 0 <= x <= 1),
      ("std", lambda x: 0 < x < math.inf),
    ):
      value = getattr(self, key)
      if np.shape(value) != (3,) or not all(map(sound, value)):
        raise ValueError(
          f"normalize: {key} = {value} must be three numbers, of pixels in 0..1"
        )

  @property
  def writes(self) -> tuple[str, ...]:
    """Returns the keys of the image and, for the device, of what is left to do."""
    return ("image", *self.kept)

  @property
  def kept(self) -> tuple[str, ...]:
    """Returns the key that is to be in the batch beside the image."""
    return ("image_affine",) if self.device else ()

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with `image` f32[h, w, 3], or what the device needs."""
    image = example["image"]
    height, width = image.shape[:2]
    if self.device:
      return example | {"image_affine": np.stack(_rows(self.mean, self.std, 1))}
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
