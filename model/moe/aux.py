"""Auxiliary losses of the router, all f32 and masked, so that shapes are static.

importance and load: V-MoE (arXiv 2106.05974, appendix A). gshard: GShard (arXiv
2006.16668, algorithm 1). z: ST-MoE (arXiv 2202.08906, eq. 5). local and global entropy:
LIMoE (arXiv 2206.02770, section 2.2). None of them is weighted here. A mask without any
real token gives 0, with zero gradients.

Axis letters: g group, s tokens of a group, e experts. Statistics are of the "global"
batch, or of each "group" and then averaged over the groups that hold a real token.
"""

import jax
import jax.numpy as jnp

from model.types import Array


def importance(gates: Array, mask: Array, statistics: str = "global") -> Array:
  """Squared coefficient of variation over the experts of their summed gates, f32[].

  Args:
    gates: f32[g, s, e], clean (noise-free) softmax.
    mask: bool[g, s], True for a real token, of any modality.
    statistics: "global" or "group".
  """
  mean, real = _mean_over_tokens(gates, mask, statistics)  # the scale cancels
  return _average(_squared_variation(mean), real)


def load(
  logits: Array,
  noisy: Array,
  mask: Array,
  *,
  k: int,
  sigma: float,
  statistics: str = "global",
) -> Array:
  """Squared coefficient of variation over the experts of their smoothed load, f32[].

  An expert's load is the probability that it would be among the top k if its own noise
  were drawn again: 1 - Phi((eta - l) / sigma), with eta the k-th largest noisy logit.

  Args:
    logits: f32[g, s, e], clean.
    noisy: f32[g, s, e], what the routing was decided on.
    mask: bool[g, s].
    k: experts per token.
    sigma: standard deviation of the noise, above 0.
    statistics: "global" or "group".
  """
  eta = _kth_largest(noisy, k)[..., None]
  probability = jax.scipy.stats.norm.sf((eta - logits) / sigma)
  mean, real = _mean_over_tokens(probability, mask, statistics)
  return _average(_squared_variation(mean), real)


def gshard(gates: Array, mask: Array, statistics: str = "global") -> Array:
  """E * sum_e f_e * p_e: 1 where the routing is balanced, E on a single expert, f32[].

  f_e is the share of the tokens whose first choice is expert e, a count without a
  gradient; p_e is the mean gate of e, which carries it (GShard, arXiv 2006.16668).

  Args:
    gates: f32[g, s, e], NOISY softmax, by which the tokens were dispatched: V-MoE's
      convention, unlike that of its importance.
    mask: bool[g, s], True for a real token, of any modality.
    statistics: "global" or "group".
  """
  first = jax.nn.one_hot(jnp.argmax(gates, axis=-1), gates.shape[-1])
  share, _ = _mean_over_tokens(first, mask, statistics)
  mean, real = _mean_over_tokens(gates, mask, statistics)
  return _average(gates.shape[-1] * jnp.sum(share * mean, axis=-1), real)


def z(logits: Array, mask: Array) -> Array:
  """Mean over real tokens of the squared logsumexp of the clean logits f32[g, s, e]."""
  square = jnp.square(jax.nn.logsumexp(logits, axis=-1))
  return _mean_over_tokens(square, mask, "global")[0][0]


def local_entropy(gates: Array, mask: Array) -> Array:
  """Mean entropy of the clean gates of one modality's tokens, in nats, f32[].

  Args:
    gates: f32[g, s, e].
    mask: bool[g, s], True for the real tokens of the modality.
  """
  return _mean_over_tokens(entropy(gates), mask, "global")[0][0]


def global_entropy(
  gates: Array, mask: Array, min_experts: float, statistics: str = "global"
) -> Array:
  """max(0, tau - H(mean gate)) of one modality, tau = log(min_experts), in nats, f32[].

  Args:
    gates: f32[g, s, e], clean.
    mask: bool[g, s], True for the real tokens of the modality.
    min_experts: the least number of experts that the modality should use; no gradient
      once it does.
    statistics: "global" or "group".
  """
  mean, real = _mean_over_tokens(gates, mask, statistics)
  return _average(jax.nn.relu(jnp.log(min_experts) - entropy(mean)), real)


def entropy(p: Array) -> Array:
  """-sum p log p over the last axis, in nats; its gradient is finite at p = 0."""
  return -jnp.sum(p * jnp.log(jnp.maximum(p, jnp.finfo(p.dtype).tiny)), axis=-1)


def _mean_over_tokens(
  values: Array, mask: Array, statistics: str
) -> tuple[Array, Array]:
  """values [g, s, ...] -> means f32[1 or g, ...] and bool[1 or g]: any real token?"""
  axes = (0, 1) if statistics == "global" else (1,)
  keep = mask.reshape(mask.shape + (1,) * (values.ndim - 2))
  # A selection, not a product: padding may hold anything, NaN included.
  total = jnp.sum(jnp.where(keep, values, 0.0), axis=axes)
  count = jnp.sum(mask, axis=axes, dtype=jnp.float32)
  total, count = (
    (total[None], count[None]) if statistics == "global" else (total, count)
  )
  divisor = jnp.maximum(count, 1.0).reshape(count.shape + (1,) * (total.ndim - 1))
  return total / divisor, count > 0


def _average(values: Array, real: Array) -> Array:
  """Mean of f32[n] over the entries where bool[n] holds; 0 if there are none."""
  total = jnp.sum(jnp.where(real, values, 0.0))
  return total / jnp.maximum(jnp.sum(real, dtype=jnp.float32), 1.0)


def _squared_variation(x: Array) -> Array:
  """(population std / mean)^2 over the last axis; 0 where the mean is 0."""
  mean = jnp.mean(x, axis=-1, keepdims=True)
  safe = jnp.where(mean > 0, mean, 1.0)
  square = jnp.mean(jnp.square(x / safe - 1.0), axis=-1)
  return jnp.where(mean[..., 0] > 0, square, 0.0)


def _kth_largest(x: Array, k: int) -> Array:
  # By masked sums, so that its gradient needs no scatter.
  left = jax.lax.stop_gradient(x)
  for _ in range(k - 1):
    top = jax.nn.one_hot(jnp.argmax(left, -1), x.shape[-1], dtype=jnp.bool_)
    left = jnp.where(top, -jnp.inf, left)
  kth = jax.nn.one_hot(jnp.argmax(left, -1), x.shape[-1], dtype=jnp.bool_)
  return jnp.sum(jnp.where(kth, x, 0.0), axis=-1)
