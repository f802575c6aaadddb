"""What can be done to images on the device, by one number per example; nothing random.

Axis letters: b batch, h height, w width, c channels. Every function maps f32[b, h, w,
c] to f32[b, h', w', c] and works row by row, so that a batch split over devices stays
so. Colours are RGB in 0..1. Whatever resamples is two products of matrices, one along
each axis: what accelerators do best, and without a look-up.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from model.types import Array

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def crop(
  x: Array, top: Array, left: Array, height: Array, width: Array, size: Sequence[int]
) -> Array:
  """Cuts a box and resizes it bilinearly, with antialiasing where it shrinks.

  Args:
    x: f32[b, h, w, c].
    top: f32[b], in pixels, as the others; fractions are meant.
    left: f32[b].
    height: f32[b].
    width: f32[b].
    size: (height, width) of the result.
  """
  shape = (*size, x.shape[-1])
  scale = jnp.stack([size[0] / height, size[1] / width], axis=1)
  shift = -jnp.stack([top, left], axis=1) * scale

  def one(image, scale, shift):
    return jax.image.scale_and_translate(
      image, shape, (0, 1), scale, shift, method="linear"
    )

  return jax.vmap(one)(x, scale, shift)


def flip(x: Array, flipped: Array) -> Array:
  """Returns x, from right to left where flipped bool[b]."""
  return jnp.where(_each(flipped), x[:, :, ::-1], x)


def brighten(x: Array, factor: Array) -> Array:
  """Multiplies by factor f32[b]."""
  return _clipped(x * _each(factor))


def contrast(x: Array, factor: Array) -> Array:
  """Multiplies the distance to the image's mean grey by factor f32[b]."""
  mean = jnp.mean(gray(x), axis=(1, 2, 3), keepdims=True)
  return _clipped(mean + _each(factor) * (x - mean))


def saturate(x: Array, factor: Array) -> Array:
  """Multiplies the distance to each pixel's grey by factor f32[b]."""
  own = gray(x)
  return _clipped(own + _each(factor) * (x - own))


def turn_hue(x: Array, turn: Array) -> Array:
  """Turns the hue of HSV by turn f32[b]; 1 is the whole circle, 1/3 red to green."""
  red, green, blue = x[..., 0], x[..., 1], x[..., 2]
  most, least = jnp.max(x, axis=-1), jnp.min(x, axis=-1)
  chroma = most - least
  safe = jnp.where(chroma > 0, chroma, 1.0)  # grey has no hue: any will do
  # Not most == red: compilers may round the two apart. Where channels tie, so do these.
  sixth = jnp.where(
    (red >= green) & (red >= blue),
    (green - blue) / safe,
    jnp.where(green >= blue, (blue - red) / safe + 2, (red - green) / safe + 4),
  )
  sixth += 6 * turn[:, None, None]
  # A channel is full for a third of the circle and falls to its least within a sixth.
  at = jnp.mod(sixth[..., None] + jnp.asarray([5.0, 3.0, 1.0])[None, None, None], 6)
  lost = jnp.clip(jnp.minimum(at, 4 - at), 0, 1)
  return most[..., None] - chroma[..., None] * lost


def gray(x: Array) -> Array:
  """Returns the luma of each pixel, f32[b, h, w, 1]."""
  weights = jnp.asarray(LUMA, x.dtype)[None, None, None]
  return jnp.sum(x * weights, axis=-1, keepdims=True)


def blur(x: Array, sigma: Array, radius: int) -> Array:
  """Averages over a Gaussian window; near an edge, over the part that is inside.

  Args:
    x: f32[b, h, w, c].
    sigma: f32[b], standard deviation in pixels, above 0.
    radius: the window's, in pixels; 0 changes nothing.
  """
  rows, columns = (_window(n, sigma, radius) for n in x.shape[1:3])
  return jnp.einsum("bij,bjkc,blk->bilc", rows, x, columns, precision="highest")


def _window(n: int, sigma: Array, radius: int) -> Array:
  """Returns f32[b, n, n]: what each place takes from each other one."""
  at = jnp.arange(n, dtype=jnp.float32)
  apart = at[:, None] - at[None, :]
  weight = jnp.exp(-0.5 * (apart[None] / sigma[:, None, None]) ** 2)
  weight = jnp.where(jnp.abs(apart)[None] <= radius, weight, 0.0)
  return weight / jnp.sum(weight, axis=2, keepdims=True)


def _each(x: Array) -> Array:
  return x[:, None, None, None]


def _clipped(x: Array) -> Array:
  return jnp.clip(x, 0.0, 1.0)
