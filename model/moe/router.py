"""Noisy top-k token-choice routing into slots of bounded capacity (arXiv 2106.05974).

Pure functions over one routing group of s tokens; the layer maps them over the groups.
Axis letters: g group, s tokens of a group, e experts, c capacity (slots of one expert),
k choices per token. Everything here is f32 or int32.
"""

from fractions import Fraction
import math

from flax import struct
import jax
import jax.numpy as jnp

from model.types import Array

MULTIPLE = 4  # capacities are rounded up to it: whole vector registers, few shapes


@struct.dataclass
class Routes:
  """Who goes where: two inverse maps between token choices and expert slots.

  Attributes:
    gate: f32[g, s, k], the weight of each choice in the output.
    slot: int32[g, s, k], expert * c + position; e * c for a choice that is not served.
    entry: int32[g, e, c], token * k + choice in each slot; s * k for an empty slot.
  """

  gate: Array
  slot: Array
  entry: Array


def capacity(tokens: int, k: int, factor: float, experts: int) -> int:
  """Returns the slots of an expert: ceil(s * k * factor / e), up to a multiple of 4.

  It never exceeds the group's tokens s (rounded up likewise): a token chooses an expert
  at most once, so that further slots could not be filled.
  """
  # Exact: 100 * 1.1 is above 110 in binary floating point, and would cost four slots.
  slots = math.ceil(tokens * k * Fraction(str(factor)) / experts)
  return _round_up(max(1, min(slots, tokens)))


def _round_up(n: int) -> int:
  return -(-n // MULTIPLE) * MULTIPLE


def noisy(logits: Array, key: Array, std: float) -> Array:
  """Adds normal noise of standard deviation `std` to each logit f32[..., e]."""
  return logits + std * jax.random.normal(key, logits.shape, logits.dtype)


def top_k(gates: Array, k: int) -> tuple[Array, Array]:
  """Returns the k largest gates per token, NOT renormalised, and their experts.

  Args:
    gates: f32[..., e], softmax over all experts.
    k: choices per token.

  Returns:
    f32[..., k] and int32[..., k], largest first; ties go to the lower index.
  """
  # k is 1 or 2: k passes of argmax are cheaper than a sort, and a masked sum, unlike a
  # gather, has no scatter in its gradient.
  left, values, indices = jax.lax.stop_gradient(gates), [], []
  for _ in range(k):
    index = jnp.argmax(left, axis=-1)
    chosen = jax.nn.one_hot(index, gates.shape[-1], dtype=jnp.bool_)
    values.append(jnp.sum(jnp.where(chosen, gates, 0.0), axis=-1))
    indices.append(index.astype(jnp.int32))
    left = jnp.where(chosen, -1.0, left)
  return jnp.stack(values, axis=-1), jnp.stack(indices, axis=-1)


def assign(
  expert: Array, priority: Array | None, mask: Array, *, experts: int, slots: int
) -> tuple[Array, Array]:
  """Gives the token choices of one group their slots.

  All first choices are placed before any second choice; among equals the token with the
  larger priority, and then the earlier one, goes first. Padding takes no slot.

  Args:
    expert: int32[s, k], the chosen experts.
    priority: f32[s], larger first (batch-priority routing); None is the array's order.
    mask: bool[s], True for a real token.
    experts: number of experts, e.
    slots: capacity of an expert, c.

  Returns:
    slot int32[s, k] and entry int32[e, c], as in `Routes`.
  """
  s, k = expert.shape
  wanted = jnp.where(mask[:, None], expert, experts)  # padding sorts behind all experts
  choice = jnp.arange(k, dtype=jnp.int32)[None]
  entry = jnp.arange(s * k, dtype=jnp.int32).reshape(s, k)
  keys = [(wanted * k + choice).T.reshape(-1)]  # by expert, then choice ...
  if priority is not None:  # ... then priority; the stable sort keeps the array's order
    keys.append(jnp.tile(-jax.lax.stop_gradient(priority), k))
  queue = jax.lax.sort(
    (*keys, entry.T.reshape(-1)), num_keys=len(keys), is_stable=True
  )[-1]
  # The experts' queues, one behind the other, need no scatter in either direction.
  length = jnp.sum(
    wanted.reshape(-1, 1) == jnp.arange(experts)[None], axis=0, dtype=jnp.int32
  )
  start = jnp.cumsum(length) - length
  place = jnp.arange(slots, dtype=jnp.int32)[None]
  at = jnp.minimum(start[:, None] + place, s * k - 1)
  filled = jnp.where(place < length[:, None], queue[at], s * k)
  rank = jnp.argsort(queue).astype(jnp.int32).reshape(s, k)  # the inverse permutation
  position = rank - start[jnp.minimum(wanted, experts - 1)]
  served = mask[:, None] & (position < slots)
  return jnp.where(served, expert * slots + position, experts * slots), filled


def route(
  gates: Array, mask: Array, *, k: int, slots: int, priority: bool
) -> tuple[Routes, Array]:
  """Routes every group by its (noisy) gates.

  Args:
    gates: f32[g, s, e], the softmax that is dispatched on.
    mask: bool[g, s], True for a real token.
    k: choices per token.
    slots: capacity of an expert, c.
    priority: whether the tokens with the largest first gate get their slots first.

  Returns:
    The routes, and the chosen experts int32[g, s, k], served or not.
  """
  gate, expert = top_k(gates, k)

  def one(expert, first, mask):
    return assign(
      expert,
      first if priority else None,
      mask,
      experts=gates.shape[-1],
      slots=slots,
    )

  slot, entry = jax.vmap(one)(expert, gate[..., 0], mask)
  return Routes(gate=gate, slot=slot, entry=entry), expert
