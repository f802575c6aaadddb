"""Products of tokens and weights, in the shape that compilers like best."""

import math

import jax

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
