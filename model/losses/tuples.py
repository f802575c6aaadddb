"""Tuples of rows to contrast with the positive: Symile's (arXiv 2411.01053).

The anchor is contrasted with products of one row of each other modality, which come
from different rows; as many products as rows. Over a ring of devices the backward pass
is written by hand: it keeps no product, makes one anchor's after the other's and adds
every gradient up where it arises. By differentiation all anchors' would be held.
"""

from collections.abc import Sequence
import functools
import operator
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from model.losses import pairs as pairing
from model.losses import permute, reduce, reductions
from model.types import Array, Batch

OP = reductions.LogSumExp(both=False, exclude=True)


def contrast(
  z: Sequence[Array],
  partners: Sequence[Array],
  valid: Array,
  scale: Array,
  strategy: str = "auto",
  tile: int | None = None,
) -> tuple[tuple[Array, ...], Array]:
  """Returns what each anchor is contrasted with, and the positives.

  Args:
    z: [b, d] of each modality, two or more.
    partners: of `partners_of`, i32[b] each, two fewer than modalities.
    valid: bool[b], rows whose product counts.
    scale: f32[], above 0.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.

  Returns:
    For each modality as the anchor x, f32[b]: logsumexp of scale * m(x_i, product) over
    the products of all other rows; and f32[b]: m of the rows themselves.
  """
  z = tuple(x.astype(jnp.float32) for x in z)
  row, col = reduce.sides(z[0], z[1], (None, valid), "diagonal")
  plan = reduce.plan_of(strategy, tile, row, col)
  if plan.strategy == "ring" and plan.shards > 1 and len(valid) % plan.shards == 0:
    return _ring(plan, z, tuple(partners), valid, scale)
  how: dict[str, Any] = dict(valid=valid, exclude="diagonal", strategy=strategy)
  far = []
  for i, x in enumerate(z):
    direct, moved = _factors(i, z, partners, strategy)
    columns = _product((direct, *moved))
    far.append(reduce.row_logsumexp(x, columns, scale, tile=tile, **how))
  return tuple(far), jnp.sum(_product(z), axis=-1)


def partners_of(n: int, batch: Batch, valid: Array) -> list[Array]:
  """Returns n times i32[b]: each row's row k = 1..n places on, in the order of hashes.

  Hashed ids, so that the order of the rows does not matter (but for equal ids), and
  over the valid rows only; with fewer rows than n some do meet themselves.

  Raises:
    ValueError: n above 0, and the batch has no "id".
  """
  if n == 0:
    return []
  order = jnp.lexsort((hashed(pairing.ids(batch)), ~valid))
  place = jnp.argsort(order)
  count = jnp.maximum(jnp.sum(valid, dtype=jnp.int32), 1)
  return [order[(place + k) % count] for k in range(1, n + 1)]


def hashed(ids: Array) -> Array:
  """Returns u32[b]: well mixed, different for different ids (the finish of murmur3)."""
  h = ids.astype(jnp.uint32) + jnp.uint32(0x9E3779B9)
  for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
    h = (h ^ (h >> jnp.uint32(shift))) * jnp.uint32(factor)
  return h ^ (h >> jnp.uint32(16))


def _factors(i: int, z: Sequence[Array], partners: Sequence[Array], strategy: str):
  """Returns what anchor i's products are made of: the next modality, the others moved.

  In a circle, so that the ring adds up each modality's gradient once as the anchor's,
  once as the next one's, and once on its way.
  """
  others = [*z[i + 1 :], *z[:i]]
  moved = [permute.take(x, k, strategy=strategy) for x, k in zip(others[1:], partners)]
  return others[0], moved


def _product(arrays: Sequence[Array]) -> Array:
  return functools.reduce(operator.mul, arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(plan: reduce.Plan, z, partners, valid: Array, scale: Array):
  return _ring_fwd(plan, z, partners, valid, scale)[0]


def _ring_fwd(plan: reduce.Plan, z, partners, valid: Array, scale: Array):
  kept, far = [], []
  seen = z, partners
  for i, x in enumerate(z):
    direct, moved = _factors(i, *seen, "ring")
    row, col = reduce.sides(x, _product((direct, *moved)), (None, valid), "diagonal")
    carry, _ = reduce.carries(OP, plan, row, col, scale, jnp.float32(0))
    kept.append(carry)
    far.append(OP.finish(carry))
    seen = _after(far[-1][0], (z, partners))
  out = tuple(far), jnp.sum(_product(z), axis=-1)
  return out, (z, partners, valid, scale, kept)


def _ring_bwd(plan: reduce.Plan, residuals, g):
  z, partners, valid, scale, kept = residuals
  far, positive = g
  n = len(z)
  dz = [positive[:, None] * _product((*z[:i], *z[i + 1 :])) for i in range(n)]
  dscale = jnp.zeros((), jnp.float32)
  for i in reversed(range(n)):
    x, places = _after(sum(d[0, 0] for d in dz), (z, partners))
    direct, moved = _factors(i, x, places, "ring")
    row, col = reduce.sides(x[i], _product((direct, *moved)), (None, valid), "diagonal")
    rows = kept[i], far[i] * scale
    dz[i], dcol = _pull(plan, row, col, rows, dz[i], scale)
    following = (i + 1) % n
    more = _product((dcol, *moved))
    dz[following] += more
    # dcol has the scale in it: sum_ij ds_ij a_i . c_j = sum_j c_j . dcol_j / scale.
    dscale += jnp.sum(direct * more) / scale
    for k, place in enumerate(places):
      rest = (*moved[:k], *moved[k + 1 :])
      at = (i + 2 + k) % n
      dz[at] = permute.put(_product((dcol * direct, *rest)), place, dz[at])
  return tuple(dz), None, None, dscale


_ring.defvjp(_ring_fwd, _ring_bwd)


def _pull(plan: reduce.Plan, row, col, rows, start: Array, scale: Array):
  """Returns `start` and the rows' gradient, and the columns'; both [b, d]."""
  split = P(plan.axes)
  zero = jnp.zeros((), jnp.float32)

  def local(row, col, rows, da, scale, bias):
    def hop(carry, _):
      da, db, col = carry
      following = reduce.send(plan, col)
      more_a, more_b, _ = reductions.backward(
        OP, row, col, scale, bias, plan.tile, rows, None
      )
      return (da + more_a, reduce.send(plan, db + more_b), following), None

    carry = (da, jnp.zeros_like(da), col)
    (da, db, _), _ = lax.scan(hop, carry, length=plan.shards)
    return da, db

  call = reduce.shard(plan, local, 4, (split, split))
  return call(row, col, rows, start, scale, zero)


def _after(done: Array, tree: Any) -> Any:
  """Returns the arrays, to be used once `done` f32[] is known; zeros if it is nan.

  For memory: what does not depend on one another the compiler runs side by side, each
  with its temporaries, and barriers are gone when it schedules. nan is never 0.
  """
  return jax.tree.map(lambda x: jnp.where(jnp.isnan(done), 0, x), tree)
