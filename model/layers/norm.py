"""Layer normalisation, in f32 whatever the dtype of the activations."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from model.types import Array

NORMS = ("layernorm", "rmsnorm")


class Norm(nn.Module):
  """Layer norm (arXiv 1607.06450) or RMS norm (arXiv 1910.07467) over the last axis.

  Attributes:
    kind: "layernorm" | "rmsnorm"; the latter neither centres nor has a bias.
    dtype: of the result.
    epsilon: added to the variance.
    by_formula: whether the gradient of a layer norm is written out, as is fast on GPUs,
      or derived, as is fast elsewhere.

  Parameters (f32): scale [w], bias [w].
  """

  kind: str = "layernorm"
  dtype: jnp.dtype = jnp.float32
  epsilon: float = 1e-6
  by_formula: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x: [..., w] -> dtype [..., w]; mean and variance in f32.

    Raises:
      ValueError: an unknown kind.
    """
    if self.kind not in NORMS:
      raise ValueError(
        f"config.model.trunk.norm = {self.kind!r}, expected one of {NORMS}"
      )
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    if self.kind == "rmsnorm":
      y = x.astype(jnp.float32)
      y = y * _inverse_deviation(y, self.epsilon) * _row(scale, x)
      return y.astype(self.dtype)
    bias = self.param("bias", nn.initializers.zeros, x.shape[-1:])
    apply = _by_formula if self.by_formula else _layer_norm
    return apply(x, scale, bias, self.epsilon, self.dtype)


def _row(v: Array, x: Array) -> Array:
  return v.reshape((1,) * (x.ndim - 1) + v.shape)


def _inverse_deviation(y: Array, epsilon: float) -> Array:
  square = jnp.mean(jnp.square(y), axis=-1, keepdims=True)
  return jax.lax.rsqrt(square + jnp.float32(epsilon))


def _layer_norm(
  x: Array, scale: Array, bias: Array, epsilon: float, dtype: jnp.dtype
) -> Array:
  y = x.astype(jnp.float32)
  y = y - jnp.mean(y, axis=-1, keepdims=True)
  y = y * _inverse_deviation(y, epsilon)
  return (y * _row(scale, x) + _row(bias, x)).astype(dtype)


_by_formula = jax.custom_vjp(_layer_norm, nondiff_argnums=(3, 4))


def _forward(x, scale, bias, epsilon, dtype):
  return _layer_norm(x, scale, bias, epsilon, dtype), (x, scale)


def _backward(epsilon, dtype, kept, d):
  """Gradients by formula: a pass over x for two numbers a row, then one for each.

  Derived from the forward pass, that by the scale would first be written out, in f32
  and for each token, which takes a GPU longer than all else here.
  """
  x, scale = kept
  y, d = x.astype(jnp.float32), d.astype(jnp.float32)
  # Counted from the first of the row, or a large mean leaves the variance no digits.
  first = y[..., :1]
  mean = jnp.mean(y - first, axis=-1, keepdims=True)
  square = jnp.mean(jnp.square(y - first), axis=-1, keepdims=True)
  variance = jnp.maximum(square - jnp.square(mean), 0)
  inverse = jax.lax.rsqrt(variance + jnp.float32(epsilon))
  # Or the compiler finds them again wherever they are used.
  first, mean, inverse = jax.lax.optimization_barrier((first, mean, inverse))
  y = (y - first - mean) * inverse
  axes = tuple(range(x.ndim - 1))
  by_scale, by_bias = jnp.sum(d * y, axis=axes), jnp.sum(d, axis=axes)
  d = d * _row(scale, x)
  along = jnp.mean(d * y, axis=-1, keepdims=True)
  level = jnp.mean(d, axis=-1, keepdims=True)
  # Sums first, then what is made of them: as one, a GPU takes longer.
  along, level = jax.lax.optimization_barrier((along, level))
  by_x = inverse * (d - level - y * along)
  return by_x.astype(x.dtype), by_scale, by_bias


_by_formula.defvjp(_forward, _backward)
