"""The dense MLP of a transformer block."""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from model.layers import fused, matmul
from model.layers.matmul import Weights
from model.types import Array

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
  "gelu_tanh": nn.gelu,
  "gelu": functools.partial(nn.gelu, approximate=False),
  "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}


def activation(name: str, recompute: bool = False) -> Callable[[Array], Array]:
  """Returns an activation of that name.

  Args:
    name: of ACTIVATIONS.
    recompute: keep its input alone for the backward pass, not what it computes on its
      way: less memory, and a GPU's product of matrices applies it in passing. The
      gradient is computed in f32, which is fast there, too: fewer roundings.
  """
  act = ACTIVATIONS[name]
  if not recompute:
    return act

  def backward(x: Array, d: Array) -> tuple[Array]:
    # Or the compiler keeps what it had computed.
    x = jax.lax.optimization_barrier(x)
    _, pull = jax.vjp(act, x.astype(jnp.float32))
    return (pull(d.astype(jnp.float32))[0].astype(x.dtype),)

  recomputed = jax.custom_vjp(lambda x: act(x))  # of x alone, no options
  recomputed.defvjp(lambda x: (act(x), x), backward)
  return recomputed


class Mlp(nn.Module):
  """Two linear layers around a GELU (arXiv 1706.03762, section 3.3; 1606.08415).

  Attributes:
    hidden: width between the layers, m.
    activation: "gelu_tanh", as in V-MoE and big_vision; "gelu", by the error function;
      "quick_gelu", x sigmoid(1.702 x), of the first CLIP models.
    dtype: of the matmuls and the result.
    recompute: see `activation`.
    fused: whether `model.layers.fused` computes gradients, for a GPU.
    leave: whether the gradient by the last bias is left to what takes the result.

  Parameters (f32): up/kernel [w, m], up/bias [m]; down/kernel [m, w], down/bias [w].
  """

  hidden: int
  activation: str = "gelu_tanh"
  dtype: jnp.dtype = jnp.float32
  recompute: bool = False
  fused: bool = False
  leave: bool = False

  @nn.compact
  def __call__(self, x: Array) -> tuple[Array, Array]:
    """x: [..., w] -> dtype [..., w], and the last bias, which is in it."""
    up, up_bias = Weights((self.hidden,), name="up")(x.shape[-1])
    down, down_bias = Weights(x.shape[-1:], name="down")(self.hidden)
    y = matmul.linear(x, up, up_bias, self.dtype, leave=self.fused)
    if self.fused:
      y = fused.activate(y, up_bias, self.activation, ACTIVATIONS[self.activation])
    else:
      y = activation(self.activation, self.recompute)(y)
    return matmul.linear(y, down, down_bias, self.dtype, self.leave), down_bias
