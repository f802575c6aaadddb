"""Lightness or colour alone: views of an image in the Lab space (arXiv 1906.05849).

sRGB -> linear -> XYZ (D65) -> CIE 1976 L*a*b*
"""

import dataclasses

import jax.numpy as jnp

from model.types import Array, Batch

KEEP = {"l": (1.0, 0.0, 0.0), "ab": (0.0, 1.0, 1.0), "lab": (1.0, 1.0, 1.0)}
# IEC 61966-2-1; its rows sum to WHITE.
XYZ = (
  (0.412453, 0.357580, 0.180423),
  (0.212671, 0.715160, 0.072169),
  (0.019334, 0.119193, 0.950227),
)
WHITE = (0.95047, 1.0, 1.08883)  # D65, 2 degrees
# What sRGB reaches of L, a and b.
LOW = (0.0, -86.185, -107.863)
HIGH = (100.0, 98.254, 94.482)


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
  """Converts RGB to Lab, each channel in -1..1, and keeps some of the channels.

  The others are 0, so that every view has three channels and one tower takes it: its
  linear stem has weights of their own for each view all the same, as the paper's split
  network, and a trunk for both, unlike it. All three together are the sum of the two.

  Attributes:
    keep: "l" | "ab" | "lab".
    modality: of the batch: normalised f32[b, h, w, 3].
    mean: what normalising subtracted from pixels in 0..1.
    std: what it then divided by.

  Raises:
    ValueError: channels that there are not.
  """

  keep: str = "lab"
  modality: str = "image"
  mean: float | tuple[float, ...] = 0.0
  std: float | tuple[float, ...] = 1.0

  denormalises = True

  def __post_init__(self):
    if self.keep not in KEEP:
      raise ValueError(f"lab.keep = {self.keep!r} must be one of {tuple(KEEP)}")

  def __call__(self, batch: Batch, key: Array) -> Batch:
    """Returns the batch with the modality in Lab, f32[b, h, w, 3].

    Raises:
      ValueError: what is no batch of RGB images.
    """
    del key
    x = batch[self.modality]
    if x.ndim != 4 or x.shape[-1] != 3:
      raise ValueError(
        f"lab converts RGB images [b, h, w, 3]; {self.modality} is {x.shape}"
      )
    mean, std, low, high, keep = (
      jnp.broadcast_to(jnp.asarray(v, jnp.float32), (1, 1, 1, 3))
      for v in (self.mean, self.std, LOW, HIGH, KEEP[self.keep])
    )
    lab = from_rgb(x.astype(jnp.float32) * std + mean)
    scaled = 2 * (lab - low) / (high - low) - 1
    return {**batch, self.modality: scaled * keep}


def from_rgb(x: Array) -> Array:
  """Returns L in 0..100, a and b, f32[..., 3], of sRGB in 0..1 (cut to it)."""
  x = jnp.clip(x, 0.0, 1.0)
  # Of the branch that is not taken, the power has no finite slope at 0.
  curved = ((jnp.maximum(x, 0.04045) + 0.055) / 1.055) ** 2.4
  linear = jnp.where(x > 0.04045, curved, x / 12.92)
  to_xyz = jnp.asarray(XYZ, jnp.float32) / jnp.asarray(WHITE, jnp.float32)[:, None]
  # 27 multiplications of a pixel: not worth the rounding of a matrix unit.
  xyz = jnp.einsum("...c,kc->...k", linear, to_xyz, precision="highest")
  root = jnp.cbrt(jnp.maximum(xyz, 0.008856))
  f = jnp.where(xyz > 0.008856, root, 7.787 * xyz + 16 / 116)
  fx, fy, fz = jnp.moveaxis(f, -1, 0)
  return jnp.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], axis=-1)
