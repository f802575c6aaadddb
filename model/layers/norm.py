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

  Parameters (f32): scale [w], bias [w].
  """

  kind: str = "layernorm"
  dtype: jnp.dtype = jnp.float32
  epsilon: float = 1e-6

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
    shape = (1,) * (x.ndim - 1) + x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, x.shape[-1:])
    y = x.astype(jnp.float32)
    if self.kind == "layernorm":
      y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(
      jnp.mean(jnp.square(y), axis=-1, keepdims=True) + jnp.float32(self.epsilon)
    )
    y = y * scale.reshape(shape)
    if self.kind == "layernorm":
      y = y + self.param("bias", nn.initializers.zeros, x.shape[-1:]).reshape(shape)
    return y.astype(self.dtype)
