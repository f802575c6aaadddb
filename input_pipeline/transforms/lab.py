"""Pixels to the Lab space, as model/views/lab.py with all of its channels."""

import dataclasses

import numpy as np

from input_pipeline.interfaces import Example

# As there: sRGB to XYZ, the white of D65, and what sRGB reaches of L, a and b.
_XYZ = np.array(
  [
    [0.412453, 0.357580, 0.180423],
    [0.212671, 0.715160, 0.072169],
    [0.019334, 0.119193, 0.950227],
  ]
)
_WHITE = np.array([0.95047, 1.0, 1.08883])
_LOW = np.array([0.0, -86.185, -107.863])
_HIGH = np.array([100.0, 98.254, 94.482])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Converts `image` (uint8 or f32 in 0..255) from RGB to Lab, each channel in -1..1.

  For evaluators of towers that were trained on views by lightness and by colour; in the
  place of `normalize`.
  """

  reads = ("image",)
  writes = ("image",)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with `image` f32[h, w, 3]."""
    x = np.clip(example["image"] / 255.0, 0, 1)
    linear = np.where(x > 0.04045, ((x + 0.055) / 1.055) ** 2.4, x / 12.92)
    xyz = linear @ (_XYZ / _WHITE[:, None]).T
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    fx, fy, fz = np.moveaxis(f, -1, 0)
    lab = np.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=-1)
    scaled = 2 * (lab - _LOW) / (_HIGH - _LOW) - 1
    return example | {"image": scaled.astype(np.float32)}
