"""Damaged images, in five severities: what a model should see through.

Kinds and strengths of noise, contrast, brightness, JPEG and pixelate are those of arXiv
1903.12261 (its code, for 224 pixels); blur and occlusion, which it does not have so,
are ours. Strengths that are lengths, of blur and pixelate, are relative to the image.
"""

from collections.abc import Callable
import dataclasses
import io

import numpy as np
from PIL import Image, ImageFilter

from input_pipeline.interfaces import Example

_SIDE = 224  # pixels, for which lengths were chosen
STRENGTHS = {
  "gaussian_noise": (0.08, 0.12, 0.18, 0.26, 0.38),  # deviation, of pixels in 0..1
  "shot_noise": (60.0, 25.0, 12.0, 5.0, 3.0),  # photons of a white pixel
  "impulse_noise": (0.03, 0.06, 0.09, 0.17, 0.27),  # share of values
  "blur": (1.0, 2.0, 3.0, 4.0, 6.0),  # deviation, in pixels of 224
  "pixelate": (0.6, 0.5, 0.4, 0.3, 0.25),  # of the side, that is left
  "jpeg": (25, 18, 15, 10, 7),  # quality
  "contrast": (0.4, 0.3, 0.2, 0.1, 0.05),  # that is left
  "brightness": (0.1, 0.2, 0.3, 0.4, 0.5),  # added to HSV's value, in 0..1
  "occlusion": (0.2, 0.3, 0.4, 0.5, 0.6),  # side of a grey square, of the image's
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Damages `image` uint8[h, w, 3]; put it before color and normalize.

  Attributes:
    kind: of STRENGTHS.
    severity: 1 to 5.
  """

  kind: str
  severity: int = 3

  reads = ("image",)
  writes = ("image",)

  def __post_init__(self):
    if self.kind not in STRENGTHS or self.severity not in range(1, 6):
      raise ValueError(
        f"corrupt: kind = {self.kind!r} must be one of {sorted(STRENGTHS)}, and "
        f"severity = {self.severity} from 1 to 5"
      )

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with `image` uint8[h, w, 3], damaged.

    Raises:
      ValueError: an image of another dtype or shape.
    """
    image, strength = example["image"], STRENGTHS[self.kind][self.severity - 1]
    dtype, shape = getattr(image, "dtype", type(image)), np.shape(image)
    if dtype != np.uint8 or len(shape) != 3 or shape[-1] != 3:
      raise ValueError(
        f"corrupt damages an image uint8[h, w, 3], not {dtype}{list(shape)}: put it in "
        "config.data.transforms after what decodes images, and before color, outline, "
        "lab and normalize"
      )
    return example | {"image": _KINDS[self.kind](image, strength, rng)}


def _floats(f: Callable) -> Callable:
  """Returns a function of uint8 images that computes by f in 0..1."""

  def damaged(image, strength, rng):
    x = f(image.astype(np.float32) / 255, strength, rng)
    return np.rint(np.clip(x, 0, 1) * 255).astype(np.uint8)

  return damaged


def _impulse(x, share, rng):
  draw = rng.random(x.shape)
  return np.where(draw < share / 2, 0.0, np.where(draw < share, 1.0, x))


def _contrast(x, left, rng):
  mean = x.mean(axis=(0, 1), keepdims=True)
  return (x - mean) * left + mean


def _brighter(x, added, rng):
  """Returns the colours of more value (HSV's), of the same hue and saturation."""
  value = x.max(axis=-1, keepdims=True)
  new = np.minimum(value + added, 1)
  return np.where(value > 0, x * (new / np.where(value > 0, value, 1)), new)


def _blur(image, sigma, rng):
  radius = sigma * min(image.shape[:2]) / _SIDE
  return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius)))


def _pixelate(image, left, rng):
  height, width = image.shape[:2]
  small = max(int(width * left), 1), max(int(height * left), 1)
  made = Image.fromarray(image).resize(small, Image.Resampling.BOX)
  return np.asarray(made.resize((width, height), Image.Resampling.NEAREST))


def _jpeg(image, quality, rng):
  file = io.BytesIO()
  Image.fromarray(image).save(file, "JPEG", quality=quality)
  return np.asarray(Image.open(file).convert("RGB"))


def _occlusion(image, share, rng):
  sides = [max(int(s * share), 1) for s in image.shape[:2]]
  y, x = (int(rng.integers(s - n + 1)) for s, n in zip(image.shape, sides))
  out = image.copy()
  out[y : y + sides[0], x : x + sides[1]] = 128
  return out


_KINDS: dict[str, Callable] = {
  "gaussian_noise": _floats(lambda x, s, rng: x + s * rng.standard_normal(x.shape)),
  "shot_noise": _floats(lambda x, s, rng: rng.poisson(x * s) / s),
  "impulse_noise": _floats(_impulse),
  "blur": _blur,
  "pixelate": _pixelate,
  "jpeg": _jpeg,
  "contrast": _floats(_contrast),
  "brightness": _floats(_brighter),
  "occlusion": _occlusion,
}
