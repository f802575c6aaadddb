"""Squared distances as inner products: `reduce` can then go through them in tiles."""

import jax
import jax.numpy as jnp

from model.losses import reduce
from model.types import Array


def lifted(a: Array, b: Array) -> tuple[Array, Array]:
  """Returns x f32[b, d + 2] and y f32[b2, d + 2] with x_i . y_j = -||a_i - b_j||^2.

  Holds for vectors of any norm. The rounding is that of the norms: two vectors of norm
  1 that are equal may come out at 1e-7 instead of 0, on either side of it.
  """
  a, b = a.astype(jnp.float32), b.astype(jnp.float32)
  square = jnp.sum(a * a, axis=-1, keepdims=True)
  x = jnp.concatenate([2 * a, square, jnp.ones_like(square)], axis=-1)
  square = jnp.sum(b * b, axis=-1, keepdims=True)
  y = jnp.concatenate([b, -jnp.ones_like(square), -square], axis=-1)
  return x, y


def squared(a: Array, b: Array) -> Array:
  """Returns f32[b]: ||a_i - b_i||^2 of a and b [b, d]; exactly 0 where equal."""
  return jnp.sum(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)), axis=-1)


def uniformity(
  a: Array,
  b: Array,
  t: float,
  *,
  valid: Array,
  strategy: str = "auto",
  tile: int | None = None,
) -> Array:
  """Returns f32[]: log mean_{i != j} exp(-t ||a_i - b_j||^2); 0 below two valid rows.

  Of a and itself, this is the uniformity of arXiv 2005.10242, without the pairs
  of a row with itself. Not to overflow or vanish, it is a logsumexp throughout.

  Args:
    a: [b, d].
    b: [b, d], row i of which belongs to row i of a.
    t: greater values look at nearer pairs.
    valid: bool[b] of both.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """
  x, y = lifted(a, b)
  rows = reduce.row_logsumexp(
    x, y, t, valid=valid, exclude="diagonal", strategy=strategy, tile=tile
  )
  count = jnp.sum(valid.astype(jnp.float32))
  some = count > 1
  # Where there is no pair all rows are 0 and the result is thrown away: no nan.
  rows = jnp.where(valid & some, rows, 0.0)
  total = jax.nn.logsumexp(rows, where=valid | ~some)
  pairs = jnp.maximum(count * (count - 1), 1.0)
  return jnp.where(some, total - jnp.log(pairs), 0.0)
