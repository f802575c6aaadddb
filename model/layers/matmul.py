"""Products of tokens and weights, in the shape that compilers like best."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from model.layers import device
from model.types import Array


def dot_general(
  lhs: Array, rhs: Array, dims, precision=None, preferred_element_type=None
) -> Array:
  """Returns `jax.lax.dot_general` of tokens [..., i] and a kernel [i, ...], flattened.

  For `nn.Dense(dot_general=...)`. As one product of two matrices, its gradient by the
  kernel contracts one dimension instead of two, which XLA's CPU backend runs faster; on
  GPUs the reshapes are free. On TPUs tokens stay apart: memory there is in tiles of 8
  rows, and flattening examples of, say, 196 tokens moves all of them.

  Args:
    lhs: [..., *inner].
    rhs: [*inner, ...].
    dims: the last axes of lhs contracted with the first of rhs, without batch axes;
      anything else goes to `jax.lax.dot_general` as it is.
    precision: of `jax.lax.dot_general`.
    preferred_element_type: of `jax.lax.dot_general`.
  """
  (left, right), batch = dims
  k = len(left)
  options = dict(precision=precision, preferred_element_type=preferred_element_type)
  ends = tuple(left) == tuple(range(lhs.ndim - k, lhs.ndim))
  usual = not any(map(len, batch)) and ends and tuple(right) == tuple(range(k))
  if not usual or device.is_tpu():
    return jax.lax.dot_general(lhs, rhs, dims, **options)
  inner = math.prod(rhs.shape[:k])
  flat = (lhs.reshape(-1, inner), rhs.reshape(inner, -1))
  product = jax.lax.dot_general(*flat, (((1,), (0,)), ((), ())), **options)
  return product.reshape(*lhs.shape[: lhs.ndim - k], *rhs.shape[k:])


class Weights(nn.Module):
  """The parameters of a linear map of some axes to others.

  Attributes:
    shape: of the axes that it maps to.

  Parameters (f32): kernel [*mapped, *shape], bias [*shape].
  """

  shape: tuple[int, ...]

  @nn.compact
  def __call__(self, *mapped: int) -> tuple[Array, Array]:
    """Returns kernel and bias, given the sizes of the axes that it maps."""

    def init(key: Array, shape: tuple[int, ...]) -> Array:
      flat = (math.prod(mapped), math.prod(self.shape))
      return nn.initializers.xavier_uniform()(key, flat).reshape(shape)

    kernel = self.param("kernel", init, (*mapped, *self.shape))
    return kernel, self.param("bias", nn.initializers.zeros, self.shape)


def linear(
  x: Array, kernel: Array, bias: Array, dtype: jnp.dtype, leave: bool = False
) -> Array:
  """Returns x kernel + bias, of the last axes of x and the first ones of the kernel.

  The result is parted into its axes only after the bias is added, as a GPU's product of
  matrices adds one to its columns for nothing. On TPUs, see `dot_general`.

  Args:
    x: [..., *mapped].
    kernel: [*mapped, *shape].
    bias: [*shape].
    dtype: of the product and the result, dtype [..., *shape].
    leave: whether the gradient by the bias is left to what takes the result: see
      `model.layers.fused`.
  """
  x, kernel, added = (a.astype(dtype) for a in (x, kernel, bias))
  if leave:
    added = jax.lax.stop_gradient(added)
  axes = kernel.ndim - bias.ndim
  outer, inner = x.shape[: x.ndim - axes], math.prod(kernel.shape[:axes])
  if device.is_tpu():
    last = tuple(range(len(outer), x.ndim))
    y = jax.lax.dot_general(x, kernel, ((last, tuple(range(axes))), ((), ())))
    return y + added.reshape((1,) * len(outer) + bias.shape)
  y = x.reshape(-1, inner) @ kernel.reshape(inner, -1) + added.reshape(1, -1)
  return y.reshape(*outer, *bias.shape)
