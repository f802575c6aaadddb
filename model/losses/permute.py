"""Rows of a global array in another order, without a device that holds all of them."""

import functools

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
  the gradients, which collect what belongs to their rows on the way.

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
  return _ring(axes, shards, x, index)


def put(g: Array, index: Array, onto: Array) -> Array:
  """Returns `onto` and, at each index_i, g_i too: the adjoint of `take`, by the ring.

  Args:
    g: [b, d], rows split over more than one device; has no gradient.
    index: i32[b], places in 0..b - 1.
    onto: [b, d], that travels with what is added to it.
  """
  return _ring_onto(*reductions.batch_axes(), g, index, onto)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _ring(axes: tuple[str, ...], shards: int, x: Array, index: Array) -> Array:
  def local(block: Array, wanted: Array) -> Array:
    def hop(carry, k):
      block, out = carry
      at, here = _places(axes, shards, wanted, block.shape[0], k)
      out = jnp.where(here[:, None], block[at], out)
      return (_send(axes, shards, block), out), None

    # Every row of `out` is found on the way; what it starts with does not matter, and
    # zeros would be made long before they are needed.
    return _round(shards, hop, (block, block))[1]

  return _shard(axes, local, 2)(x, index)


def _ring_fwd(axes, shards, x, index):
  return _ring(axes, shards, x, index), index


def _ring_bwd(axes, shards, index, g):
  return _ring_onto(axes, shards, g, index, jnp.zeros_like(g)), None


def _ring_onto(axes, shards: int, g: Array, index: Array, start: Array) -> Array:
  def local(wanted: Array, g: Array, block: Array) -> Array:
    def hop(block, k):
      n = block.shape[0]
      at, here = _places(axes, shards, wanted, n, k)
      block = block.at[jnp.where(here, at, n)].add(g, mode="drop")
      return _send(axes, shards, block), None

    return _round(shards, hop, block)

  return _shard(axes, local, 3)(index, g, start)


_ring.defvjp(_ring_fwd, _ring_bwd)


def _places(axes, shards: int, wanted: Array, n: int, k: Array) -> tuple[Array, Array]:
  """Returns where wanted rows are in the block of hop k, and whether they are in it."""
  at = wanted - (lax.axis_index(axes) - k) % shards * n
  return jnp.clip(at, 0, n - 1), (at >= 0) & (at < n)


def _send(axes, shards: int, block: Array) -> Array:
  return lax.ppermute(block, axes, [(i, (i + 1) % shards) for i in range(shards)])


def _round(shards: int, hop, carry):
  return lax.scan(hop, carry, jnp.arange(shards, dtype=jnp.int32))[0]


def _shard(axes, f, n: int):
  split = P(axes)
  return jax.shard_map(f, in_specs=(split,) * n, out_specs=split, check_vma=False)
