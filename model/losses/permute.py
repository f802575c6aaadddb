"""Rows of a global array in another order, without a device that holds all of them."""

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from model.losses import reduce, reductions
from model.types import Array


def take(x: Array, index: Array, *, strategy: str = "auto") -> Array:
  """Returns x[index]; differentiable in x.

  XLA gathers all of x on every device. By "ring" the rows travel round the devices
  instead, [b/p, d] at a time, and each device keeps those that it asked for; likewise
  the gradients, backwards.

  Args:
    x: [b, d], rows split over the batch axes.
    index: i32[b], places in 0..b - 1.
    strategy: of model.losses.reduce; all but "ring", and an "auto" that comes to it,
      leave it to XLA.
  """
  axes, shards = reductions.batch_axes()
  if strategy == "auto" and x.size * x.dtype.itemsize > reduce.GATHER_BYTES:
    strategy = "ring"
  if strategy != "ring" or shards == 1 or x.shape[0] % shards:
    return x[index]

  def local(block: Array, wanted: Array) -> Array:
    n, own = block.shape[0], lax.axis_index(axes)

    def hop(carry, k):
      block, out = carry
      at = wanted - (own - k) % shards * n
      row = block[jnp.clip(at, 0, n - 1)]
      out = jnp.where(((at >= 0) & (at < n))[:, None], row, out)
      ring = [(i, (i + 1) % shards) for i in range(shards)]
      return (lax.ppermute(block, axes, ring), out), None

    hops = jnp.arange(shards, dtype=jnp.int32)
    return lax.scan(hop, (block, jnp.zeros_like(block)), hops)[0][1]

  split = P(axes)
  return jax.shard_map(
    local, in_specs=(split, split), out_specs=split, check_vma=False
  )(x, index)
