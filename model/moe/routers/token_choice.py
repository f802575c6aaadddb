"""Each token takes its k best experts while they have slots (arXiv 2106.05974).

Noisy top-k; slots of bounded capacity, given in the order of the array or to the surest
tokens first (batch priority, section 4 there). A token depends on the others of its
group only through a lack of slots; without drops, or with `dispatch = "dropless"`, not
at all. In evaluation there are as many slots as if all modalities had come: a text
alone is what it is beside its image. Axis letters: g group, s tokens of a group, e
experts, c capacity, k choices.
"""

import jax
import jax.numpy as jnp

from model.moe import router
from model.moe.router import Chosen, Routes, Routing
from model.types import Array


class Router(router.Gate):
  """Noisy top-k of the softmax over all experts, not renormalised."""

  def __call__(
    self, x: Array, mask: Array, *, train: bool, key: Array | None
  ) -> Routing:
    """Decides for x [g, s, w] and its real tokens bool[g, s]; see `router.Gate`."""
    c = self.config
    logits = self.logits(x)
    noisy = logits
    if key is not None:
      noisy = router.noisy(logits, key, c.noise / c.experts)
    gates = jax.nn.softmax(noisy)
    routes: Routes | Chosen
    if c.dispatch == "dropless":
      gate, expert = top_k(gates, c.k)
      routes = Chosen(gate=gate, expert=jnp.where(mask[..., None], expert, c.experts))
      served = jnp.broadcast_to(mask[..., None], expert.shape)
    else:
      factor, whole = c.capacity, 0
      if not train:
        factor, whole = c.capacity_eval, c.group * self.example
      slots = router.capacity(x.shape[1], c.k, factor, c.experts, whole=whole)
      routes, expert = route(gates, mask, k=c.k, slots=slots, priority=c.priority)
      served = routes.slot < c.experts * slots
    chosen = jax.nn.one_hot(expert, c.experts, dtype=jnp.bool_)
    return Routing(
      routes=routes,
      logits=logits,
      noisy=noisy,
      gates=jax.nn.softmax(logits),
      load=jnp.sum(chosen & served[..., None], axis=2, dtype=jnp.float32),
      served=jnp.mean(served, axis=-1, dtype=jnp.float32),
      expert=jnp.where(mask[..., None], expert, -1),
    )


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
