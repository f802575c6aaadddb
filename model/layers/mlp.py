"""The dense MLP of a transformer block."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from model.layers import matmul
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
    dense = functools.partial(
      nn.Dense,
      dtype=self.dtype,
      kernel_init=nn.initializers.xavier_uniform(),
      dot_general=matmul.dot_general,
    )
    up = dense(self.hidden, name="up")
    down = dense(x.shape[-1], name="down")
    return down(jax.nn.gelu(up(x), approximate=True))
