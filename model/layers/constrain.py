"""Tells the compiler how activations lie: over devices, and in memory."""

import functools
import math

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import PartitionSpec

from model.types import BATCH_AXES, Array


def batch(x: Array) -> Array:
  """Constrains axis 0 of x [b, ...] to the mesh's batch axes; the rest stays whole.

  Returns x itself without a mesh, inside `jax.shard_map` over those axes, or when they
  do not divide b: a batch of a few prompts is not worth an error.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or any(axis in mesh.manual_axes for axis in BATCH_AXES):
    return x
  axes = tuple(a for a in BATCH_AXES if mesh.shape.get(a, 1) > 1)
  if not axes or x.shape[0] % math.prod(mesh.shape[a] for a in axes):
    return x
  # Without this, parameters split over fsdp can win: XLA then splits the width of the
  # activations and gathers the batch.
  return jax.lax.with_sharding_constraint(x, PartitionSpec(axes))


def gathered(kernel: Array, *axes: str | None) -> Array:
  """Constrains a kernel to be split over the mesh's `axes` alone, so not over `fsdp`.

  Of a product of many matrices, as the experts' are, the TPU compiler otherwise lets
  parts of a kernel travel round by round beside the products, and waits for them. How
  the gradient is split stays its own choice: it is to be scattered, not summed whole.

  Args:
    kernel: of as many dimensions as there are axes.
    axes: of the mesh, or None; one that is missing or does not divide counts as None.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.manual_axes or mesh.shape.get("fsdp", 1) == 1:
    return kernel

  def split(size: int, axis: str | None) -> str | None:
    return axis if axis in mesh.shape and size % mesh.shape[axis] == 0 else None

  return _gathered(kernel, PartitionSpec(*map(split, kernel.shape, axes)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(kernel: Array, spec: PartitionSpec) -> Array:
  return jax.lax.with_sharding_constraint(kernel, spec)


_gathered.defvjp(lambda k, spec: (_gathered(k, spec), None), lambda spec, _, d: (d,))


def in_order(x: Array) -> Array:
  """Constrains x [b, n, w] to lie in memory as its shape says, token by token.

  For GPUs: what is added to all examples, such as positions, makes XLA lay activations
  out with the batch last, and copy them for each norm and product of all blocks.
  """
  return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))
