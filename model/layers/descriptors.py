"""Descriptors of an image by formula, without parameters: what the wide path reads.

What was used before networks learned features, and needs few examples: where which
colors and which edges are. Axis letters: b batch, h, w pixels, c channels, g cells per
side, p pixels of a cell, k bins.
"""

import jax
import jax.numpy as jnp

from model.types import Array

NOISE = 0.1  # of a cell's gradients, summed: below it a cell counts as empty


def gradients(x: Array, cells: int, bins: int) -> Array:
  """Returns [b, g * g, k]: histograms of oriented gradients, of mean square near 1.

  As HOG (Dalal and Triggs 2005) in its plainest form: central differences of
  the mean over channels, orientations without sign, each between its two nearest bins,
  weighted by length; every cell normalised by itself.

  Args:
    x: float [b, h, w, c], of about unit variance.
    cells: g; divides h and w.
    bins: k, orientations in half a turn.
  """
  gray = x.mean(axis=-1)
  inner = jnp.pad(gray, ((0, 0), (1, 1), (1, 1)), mode="edge")
  down = (inner[:, 2:, 1:-1] - inner[:, :-2, 1:-1]) / 2
  right = (inner[:, 1:-1, 2:] - inner[:, 1:-1, :-2]) / 2
  length = jnp.hypot(down, right)
  angle = jnp.arctan2(down, right) * (bins / jnp.pi)  # in bins; k apart is the same
  apart = jnp.mod(_from_centres(angle, bins), bins)
  share = jnp.maximum(1 - jnp.minimum(apart, bins - apart), 0)
  h = _cells(length[..., None] * share, cells).sum(axis=2)
  size = jnp.sum(jnp.square(h), axis=-1, keepdims=True)
  return h * jax.lax.rsqrt(size + NOISE) * bins**0.5


def colors(x: Array, cells: int, bins: int, value_range: tuple[float, float]) -> Array:
  """Returns [b, g * g, k ** c]: roots of the cells' color histograms, mean square 1.

  Joint histograms of the channels (Swain and Ballard 1991), each value between its two
  nearest bins. Of roots, the distance is Hellinger's, which a color of few pixels moves
  more than it would the plain one's: as RootSIFT (Arandjelovic, Zisserman 2012).

  Args:
    x: float [b, h, w, c].
    cells: g; divides h and w.
    bins: k for each channel, the outermost centred at the ends of `value_range`.
    value_range: least and greatest value; what lies outside counts as they do.
  """
  low, high = value_range
  place = jnp.clip((x - low) / (high - low), 0, 1) * (bins - 1)
  apart = jnp.abs(_from_centres(place, bins))
  shares = _cells(jnp.maximum(1 - apart, 0), cells)  # [b, g * g, p, c, k]
  *first, last = jnp.moveaxis(shares, -2, 0)
  joint = jnp.ones((*last.shape[:-1], 1), x.dtype)
  for channel in first:  # an outer product per pixel; the last one is a matmul
    joint = (joint[..., None] * channel[..., None, :]).reshape(*last.shape[:-1], -1)
  counts = jnp.einsum("bgpm,bgpk->bgmk", joint, last) / last.shape[-2]
  n = bins ** x.shape[-1]
  return jnp.sqrt(counts.reshape(*counts.shape[:2], n)) * n**0.5


def _from_centres(x: Array, bins: int) -> Array:
  """Returns [..., k]: x less 0, 1, ..., k - 1."""
  x = jnp.broadcast_to(x[..., None], (*x.shape, bins))
  return x - jax.lax.broadcasted_iota(x.dtype, x.shape, x.ndim - 1)


def _cells(x: Array, cells: int) -> Array:
  """Returns [b, g * g, p, ...] of x [b, h, w, ...]."""
  b, h, w, *rest = x.shape
  x = x.reshape(b, cells, h // cells, cells, w // cells, *rest)
  return jnp.moveaxis(x, 3, 2).reshape(b, cells * cells, -1, *rest)
