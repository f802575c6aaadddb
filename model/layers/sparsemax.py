"""Sparsemax: a softmax with exact zeros (arXiv 1602.02068)."""

from jax import lax
import jax.numpy as jnp

from model.types import Array


def sparsemax(x: Array) -> Array:
  """Returns argmin_p ||p - x||^2 over the simplex, along the last axis: f32[..., m].

  p = max(x - t, 0) with the threshold t at which it sums to 1 (algorithm 1): the mean
  of the entries above it, less 1 / their number. As those entries change only where an
  entry of p is 0, the gradient is that of this mean with the entries held fixed (eq. 7
  and 8): subtract the mean over the support, and nothing outside of it.

  Args:
    x: [..., m].
  """
  x = x.astype(jnp.float32)
  # Invariant to a shift, and more exact without a large one.
  x = x - lax.stop_gradient(jnp.max(x, axis=-1, keepdims=True))
  support = x > lax.stop_gradient(_threshold(x))
  kept = jnp.where(support, x, 0.0)
  count = jnp.sum(support.astype(jnp.float32), axis=-1, keepdims=True)
  threshold = (jnp.sum(kept, axis=-1, keepdims=True) - 1) / count
  return jnp.where(support, jnp.maximum(x - threshold, 0.0), 0.0)


def _threshold(x: Array) -> Array:
  """Returns t f32[..., 1] of x f32[..., m]."""
  descending = -jnp.sort(-x, axis=-1)
  total = jnp.cumsum(descending, axis=-1) - 1
  shape = (1,) * (x.ndim - 1) + x.shape[-1:]
  rank = jnp.arange(1, x.shape[-1] + 1, dtype=jnp.float32).reshape(shape)
  last = jnp.sum(descending * rank > total, axis=-1, keepdims=True) - 1
  at = jnp.take_along_axis(total, last, axis=-1)
  return at / (last + 1).astype(jnp.float32)


def active(p: Array) -> Array:
  """Returns i32[...]: how many of the last axis of p [..., m] are not 0."""
  return jnp.sum((p > 0).astype(jnp.int32), axis=-1)


def overlap(p: Array, q: Array) -> Array:
  """Returns f32[...]: the share (Jaccard) of what either p or q uses that both use."""
  both = jnp.sum(((p > 0) & (q > 0)).astype(jnp.float32), axis=-1)
  either = jnp.sum(((p > 0) | (q > 0)).astype(jnp.float32), axis=-1)
  return both / jnp.maximum(either, 1.0)
