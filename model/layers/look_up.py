"""Rows of a table by id, such that under fsdp no chip receives the sum of the whole."""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model.types import BATCH_AXES, Array

P = PartitionSpec


def look_up(table: Array, ids: Array) -> Array:
  """Returns table[ids]; NaN where an id is beyond the table, as of `nn.Embed`.

  Under a mesh whose axis `fsdp` splits the table, each chip gathers it once and sends
  its part of the gradient: scattered over fsdp, then summed over the other axes. Left
  to itself, the compiler sums the whole gradient over all of them first.

  Args:
    table: [rows, w], split by rows.
    ids: int[b, ...].

  Returns:
    [b, ..., w] in the table's dtype. On one device, and on each under fsdp, a row's
    gradient is summed in f32.
  """
  mesh = jax.sharding.get_abstract_mesh()
  size = {} if mesh.manual_axes else dict(mesh.shape)
  fsdp, tensor = size.get("fsdp", 1), size.get("tensor", 1)
  axes = tuple(a for a in BATCH_AXES if size.get(a, 1) > 1)
  parts = math.prod(size[a] for a in axes)
  if parts == 1:
    return _rows(table, ids)
  if fsdp == 1:  # a sum in f32 would be one over the chips, of twice the bytes
    return jnp.take(table, ids, axis=0)
  if tensor > 1 or len(table) % fsdp or len(ids) % parts:
    # To the compiler, but for the gather: it would look up in the parts instead, and
    # sum over fsdp what it found. Over tensor the table stays split.
    split = P("tensor" if len(table) % tensor == 0 else None)
    table = jax.lax.with_sharding_constraint(table, split)
    return jnp.take(table, ids, axis=0)

  def local(part: Array, ids: Array) -> Array:
    return _rows(jax.lax.all_gather(part, "fsdp", tiled=True), ids)

  # Unchecked: else the sum over the other axes would come before the scatter.
  return jax.shard_map(
    local, in_specs=(P("fsdp"), P(axes)), out_specs=P(axes), check_vma=False
  )(table, ids)


@jax.custom_vjp
def _rows(table: Array, ids: Array) -> Array:
  return jnp.take(table, ids, axis=0)


def _forward(table, ids):
  return _rows(table, ids), (table, ids)


def _backward(kept, d):
  """Adds in f32: in bf16 frequent ids lose what is small, and GPUs add slowly."""
  table, ids = kept
  zeros = jnp.zeros(table.shape, jnp.float32)
  total = zeros.at[ids].add(d.astype(jnp.float32), mode="drop")
  return total.astype(table.dtype), None


_rows.defvjp(_forward, _backward)
