"""Dropout and stochastic depth, with rates that may be traced (scan over layers)."""

import jax
import jax.numpy as jnp

from model.types import Array

_STEPS = 1 << 16  # 16 random bits decide an element: half the work of a f32 uniform


def dropout(x: Array, rate: float | Array, key: Array) -> Array:
  """Zeroes elements of x [...] with probability `rate` and rescales (arXiv 1207.0580).

  The rate is rounded to 1 / 65536 and the scale uses the rounded one: the mean is x's,
  but for x's own rounding. A Python 0 returns x and draws nothing.

  Raises:
    ValueError: a static rate outside [0, 1).
  """
  return _drop(x, rate, key, x.shape)


def drop_path(x: Array, rate: float | Array, key: Array) -> Array:
  """Zeroes whole examples of a residual branch x [b, ...] (arXiv 1603.09382).

  One draw per example from one key; kept ones are divided by 1 - rate.

  Raises:
    ValueError: a static rate outside [0, 1).
  """
  return _drop(x, rate, key, (x.shape[0],) + (1,) * (x.ndim - 1))


def _drop(x: Array, rate: float | Array, key: Array, shape: tuple[int, ...]) -> Array:
  if isinstance(rate, int | float):
    if not 0 <= rate < 1:
      raise ValueError(
        f"a dropout rate of {rate}; expected 0 <= rate < 1 in "
        "config.model.trunk.dropout and config.model.trunk.drop_path"
      )
    if rate == 0:
      return x
  dropped = jnp.round(jnp.asarray(rate, jnp.float32) * _STEPS)
  keep = jax.random.bits(key, shape, jnp.uint16).astype(jnp.float32) >= dropped
  scale = (_STEPS / (_STEPS - dropped)).astype(x.dtype)
  return jnp.where(keep, x * scale, jnp.zeros((), x.dtype))
