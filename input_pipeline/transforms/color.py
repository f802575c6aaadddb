"""Random brightness, contrast, saturation and hue, as one affine map of the colours.

All four are linear in RGB (contrast up to the image's mean grey), so that one [3, 3]
product and one offset per image replace four passes over the pixels.
"""

import dataclasses
import math

import numpy as np

from input_pipeline.interfaces import Example

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_SAME = np.eye(3)
_TO_YIQ = np.array([_LUMA, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Changes the colours of `image` (uint8 or f32 in 0..255) to f32 in 0..255.

  Attributes:
    brightness: factor uniform in 1 +- this (at least 0).
    contrast: the same, around the mean grey of the image.
    saturation: the same, around each pixel's grey.
    hue: turn of the colour circle, uniform in +- this; 0.5 is the opposite colour.
    grayscale: probability of no colour at all.
    p: probability that anything but grayscale is applied.

  Raises:
    ValueError: a strength below 0, or a probability outside [0, 1].
  """

  brightness: float = 0.2
  contrast: float = 0.2
  saturation: float = 0.2
  hue: float = 0.02
  grayscale: float = 0.0
  p: float = 1.0

  def __post_init__(self):
    for key in ("brightness", "contrast", "saturation", "hue"):
      if not 0 <= getattr(self, key) < math.inf:
        raise ValueError(f"color: {key} = {getattr(self, key)} must be at least 0")
    for key in ("grayscale", "p"):
      if not 0 <= getattr(self, key) <= 1:
        raise ValueError(f"color: {key} = {getattr(self, key)} must be in [0, 1]")

  reads = ("image",)
  writes = ("image",)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with `image` f32[h, w, 3] in 0..255."""
    shape = example["image"].shape
    image = example["image"].reshape(-1, 3).astype(np.float32)
    applied, gray, *draws = rng.random(6)
    contrast, matrix = 1.0, _SAME
    if applied < self.p:
      strength = (self.brightness, self.contrast, self.saturation)
      brightness, contrast, saturation = (
        max(0.0, 1 + s * (2 * u - 1)) for s, u in zip(strength, draws)
      )
      matrix = (
        _saturate(saturation) @ _rotate(self.hue * (2 * draws[3] - 1)) * brightness
      )
    if gray < self.grayscale:
      matrix = _saturate(0.0) @ matrix
    # A product with ones: NumPy's mean over the first axis is far slower.
    mean = np.ones(len(image), np.float32) @ image / np.float32(len(image))
    mean_gray = _LUMA @ matrix @ mean
    image = image @ np.asarray(contrast * matrix.T, np.float32)
    image += np.float32((1 - contrast) * mean_gray)
    np.maximum(image, 0, out=image)
    np.minimum(image, 255, out=image)
    return example | {"image": image.reshape(shape)}


def _saturate(factor: float) -> np.ndarray:
  return factor * _SAME + (1 - factor) * _LUMA[None, :]


def _rotate(turn: float) -> np.ndarray:
  """Returns the map that turns the chroma plane of YIQ: grey stays as it is."""
  c, s = math.cos(2 * math.pi * turn), math.sin(2 * math.pi * turn)
  return _FROM_YIQ @ np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ _TO_YIQ
