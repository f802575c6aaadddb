"""The dense MLP of a transformer block."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from model.types import Array


class Mlp(nn.Module):
  """Two linear layers around a GELU (arXiv 1706.03762, section 3.3; 1606.08415).

  The tanh form of the GELU, as in V-MoE and big_vision.

  Attributes:
    hidden: width between the layers, m.
    dtype: of the matmuls and the result.

  Parameters (f32): up/kernel [w, m], up/bias [m]; down/kernel [m, w], down/bias [w].
  """

  hidden: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """x: [..., w] -> dtype [..., w]."""
    init = nn.initializers.xavier_uniform()
    up = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=init, name="up")
    down = nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=init, name="down")
    return down(jax.nn.gelu(up(x), approximate=True))
