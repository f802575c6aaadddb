"""The dense MLP of a transformer block."""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax.numpy as jnp

from model.layers import matmul
from model.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "gelu_tanh": nn.gelu,
  "gelu": functools.partial(nn.gelu, approximate=False),
  "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


class Mlp(nn.Module):
  """Two linear layers around a GELU (arXiv 1706.03762, section 3.3; 1606.08415).

  Attributes:
    hidden: width between the layers, m.
    activation: "gelu_tanh", as in V-MoE and big_vision; "gelu", by the error function;
      "quick_gelu", x sigmoid(1.702 x), of the first CLIP models.
    dtype: of the matmuls and the result.

  Parameters (f32): up/kernel [w, m], up/bias [m]; down/kernel [m, w], down/bias [w].
  """

  hidden: int
  activation: str = "gelu_tanh"
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
    return down(ACTIVATIONS[self.activation](up(x)))
