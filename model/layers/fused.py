"""Parts of a block that a GPU does in one pass over the memory, by kernels of our own.

XLA makes a kernel for each sum over tokens or along one, and each reads all again. The
gradient by a bias is such a sum: `matmul.linear` leaves it to what comes after and is
given the bias. Shapes are of a whole batch; each device has its own examples.
"""

from collections.abc import Callable
import functools
import math

from flax import linen as nn
from flax import struct
import jax
from jax.custom_derivatives import SymbolicZero
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model.layers import launch
from model.types import BATCH_AXES, Array

TOKENS = 256  # as many as attention has room for in the fast memory of a GPU
DTYPE = jnp.bfloat16  # of attention's products
DEPTH = 64  # of a head


def fits(n: int, d: int, dtype: jnp.dtype) -> bool:
  """Says whether `attend` is for n tokens and heads of depth d, on this device."""
  return n <= TOKENS and d == DEPTH and dtype == DTYPE and launch.hopper()


def _over_devices(run: Callable, arrays: tuple, dims: str, out: str) -> tuple:
  """Returns run(*arrays), on each device for its part of the batch.

  Args:
    run: of arrays on one device.
    arrays: those given to it; the first has examples in axis 0.
    dims: a letter for each: "x", examples first, then tokens; "h", and then the heads
      or the width that the mesh's `tensor` splits; "s", those in axis 1; " ", whole.
    out: the same for each result. Sums over rows, "x" or "s", stand below each other.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or mesh.manual_axes:
    return run(*arrays)
  axes = tuple(a for a in BATCH_AXES if mesh.shape.get(a, 1) > 1)
  left = arrays[0].shape[0] % math.prod(mesh.shape[a] for a in axes)
  batch = None if left else axes or None
  split = mesh.shape.get("tensor", 1)
  tensor = None
  if split > 1 and "h" in dims and arrays[0].shape[2] % split == 0:
    tensor = "tensor"
  spec = {
    "x": PartitionSpec(batch),
    "h": PartitionSpec(batch, None, tensor),
    "s": PartitionSpec(batch, tensor),
    " ": PartitionSpec(),
  }
  return jax.shard_map(
    run,
    in_specs=tuple(spec[kind] for kind in dims),
    out_specs=tuple(spec[kind] for kind in out),
    check_vma=False,  # kernels do not say over what their results vary
  )(*arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def attend(qkv: Array, bias: Array, lengths: Array | None, causal: bool) -> Array:
  """Returns softmax(q k / sqrt(d)) v, and leaves the gradient by a bias of qkv.

  Args:
    qkv: bf16 [b, n, h, 3, d]; see `fits`.
    bias: [h, 3, d], added to it already.
    lengths: int32[b], how many keys count; None: all. Unheeded if causal.
    causal: query i sees keys 0 to i only.

  Returns:
    [b, n, h, d].
  """
  return _attend_forward(qkv, bias, lengths, causal)[0]


def _attend_forward(qkv, bias, lengths, causal):
  run = functools.partial(launch.attend, causal=causal)
  y, log = _over_devices(run, (qkv, lengths), "hx", "hs")
  return y, (qkv, bias, lengths, y, log)


def _attend_backward(causal, kept, d):
  qkv, bias, lengths, y, log = kept
  run = functools.partial(launch.attend_backward, causal=causal)
  by_qkv, sums = _over_devices(run, (qkv, lengths, y, log, d), "hxhsh", "hs")
  return by_qkv, jnp.sum(sums, axis=0).astype(bias.dtype), None


attend.defvjp(_attend_forward, _attend_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def activate(x: Array, bias: Array, kind: str, act: Callable[[Array], Array]) -> Array:
  """Returns act(x), and leaves the gradient by a bias of x.

  Args:
    x: [b, n, m].
    bias: [m], added to x already.
    kind: its name in `model.layers.mlp.ACTIVATIONS`.
    act: that function.
  """
  return act(x)


def _activate_backward(kind, act, kept, d):
  x, bias = kept
  run = functools.partial(launch.activate_backward, kind=kind)
  by_x, sums = _over_devices(run, (x, d), "hh", "hs")
  return by_x, jnp.sum(sums, axis=0).astype(bias.dtype)


activate.defvjp(
  lambda x, bias, kind, act: (act(x), (x, bias)),
  _activate_backward,
)


@struct.dataclass
class Sum:
  """Tokens of a residual stream, the last sum of which is still to be made.

  Attributes:
    x: [b, n, w].
    z: to be added, [b, n, w], or None.
    bias: [w], added to z already, whose gradient is to be left; or None.
  """

  x: Array
  z: Array | None = None
  bias: Array | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def add_norm(x: Sum, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array]:
  """Returns the sum [b, n, w] and its layer norm (arXiv 1607.06450), in f32 within.

  Args:
    x: what to add.
    scale: f32[w].
    bias: f32[w].
    epsilon: added to the variance.
  """
  run = functools.partial(launch.add_norm, epsilon=epsilon)
  return _over_devices(run, (x.x, x.z, scale, bias), "xx  ", "xx")


def _add_norm_forward(x, scale, bias, epsilon):
  x, scale, bias = jax.tree.map(lambda primal: primal.value, (x, scale, bias))
  y, normed = add_norm(x, scale, bias, epsilon)
  return (y, normed), (y, x.z is None, x.bias, scale, bias)


def _add_norm_backward(epsilon, kept, d):
  y, alone, z_bias, scale, bias = kept
  more, d = d
  if isinstance(more, SymbolicZero):
    more = None  # nobody reads the sum itself
  if isinstance(d, SymbolicZero):
    d = jnp.zeros(d.shape, d.dtype)
  run = functools.partial(launch.add_norm_backward, epsilon=epsilon)
  by_y, sums = _over_devices(run, (y, d, more, scale), "xxx ", "xx")
  by_scale, by_bias, by_z_bias = jnp.sum(sums, axis=0)
  by_z_bias = None if z_bias is None else by_z_bias.astype(z_bias.dtype)
  by_x = Sum(by_y, None if alone else by_y, by_z_bias)
  return by_x, by_scale.astype(scale.dtype), by_bias.astype(bias.dtype)


add_norm.defvjp(_add_norm_forward, _add_norm_backward, symbolic_zeros=True)


class AddNorm(nn.Module):
  """Makes the last sum of a residual stream, and its layer norm.

  Attributes:
    epsilon: added to the variance.

  Parameters (f32), those of `model.layers.norm.Norm`: scale [w], bias [w].
  """

  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Sum) -> tuple[Array, Array]:
    """Returns the sum [b, n, w], and its norm."""
    scale = self.param("scale", nn.initializers.ones, x.x.shape[-1:])
    bias = self.param("bias", nn.initializers.zeros, x.x.shape[-1:])
    return add_norm(x, scale, bias, self.epsilon)
