"""Moves tokens to the experts' slots and back, with the communication that it takes.

Under an ambient mesh (`jax.set_mesh`) the groups are split over (data, fsdp, expert):
each device gathers its own groups into slots, exchanges them over the axis `expert`
with one all-to-all, and after the experts takes them back with a second one. The global
arrays keep their values in the exchange: only their placement changes.

Axis letters: g group, s tokens of a group, e experts, c capacity, k choices, w width.
"""

from collections.abc import Callable
import functools
import itertools

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from model.moe.router import Mixed, Routes, Taken
from model.types import BATCH_AXES, Array

P = PartitionSpec
_TILE = 8  # rows, on TPUs
PRODUCT = "expert_product"  # names the results of the experts' matmuls, for remat
Experts = Callable[[Array], Array]  # [e, r, w] -> [e, r, w], each expert its own r rows


def mesh_axes() -> dict[str, int]:
  """Returns the sizes of the ambient mesh's axes that are left to the compiler."""
  mesh = jax.sharding.get_abstract_mesh()
  return {
    name: size
    for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types)
    if kind != AxisType.Manual  # an enclosing shard_map has split these already
  }


def batch_shards() -> int:
  """Returns how many devices the ambient mesh splits the global batch over."""
  axes = mesh_axes()
  size = 1
  for name in BATCH_AXES:
    size *= axes.get(name, 1)
  return size


def apply(
  experts: Experts,
  x: Array,
  routes: Routes | Taken | Mixed,
  method: str = "gather",
  pieces: int = 1,
) -> Array:
  """Applies to each token the experts it was routed to, weighted by their gates.

  Args:
    experts: maps the slots [e, g * c, w] to [e, g * c, w], expert by expert.
    x: [g, s, w]; finite, padding too.
    routes: for g groups, e experts and c slots.
    method: "gather", or "einsum", the one-hot reference: O(s * e * c) memory. Mixtures
      of all tokens have no rows to gather: they are two einsums by either name.
    pieces: in how many pieces slots travel, if they do: the experts can compute one
      while the next is on its way.

  Returns:
    [g, s, w] in the dtype of the experts; exactly 0 for a token that no expert serves.
  """
  if method == "einsum":
    routes = _dense(routes, x.shape[1])
  send, receive = _METHODS[type(routes)]
  slots = send(x, routes)
  travel = mesh_axes().get("expert", 1) > 1
  spans = _spans(slots.shape[2], pieces if travel else 1)
  done = [_serve(experts, slots[:, :, span]) for span in spans]
  return receive(jnp.concatenate(done, axis=2), routes, x.shape[1])


def _serve(experts: Experts, slots: Array) -> Array:
  """Slots [e, g, c, w] -> [e, g, c, w], through the experts and back."""
  slots = _exchange(slots, outwards=True)
  e, g, c, w = slots.shape
  slots = experts(slots.reshape(e, g * c, w)).reshape(e, g, c, -1)
  return _exchange(slots, outwards=False)


def _spans(c: int, pieces: int) -> list[slice]:
  """Cuts c slots into `pieces` at most, where tiles of memory end: none is split."""
  tiles = -(-c // _TILE)
  n = min(pieces, tiles)
  ends = [_TILE * (tiles * i // n) for i in range(n)] + [c]
  return [slice(a, b) for a, b in itertools.pairwise(ends)]


def _batch_axes() -> tuple[str, ...]:
  axes = mesh_axes()
  return tuple(name for name in BATCH_AXES if axes.get(name, 1) > 1)


def _per_device(function: Callable, group_axes: tuple[int, ...], out: int) -> Callable:
  """Runs `function` on each device's own groups.

  Args:
    function: of arrays whose axis `group_axes[i]` is the groups, to one array.
    group_axes: the groups' axis of each argument.
    out: the groups' axis of the result.
  """
  split = _batch_axes()
  if not split:
    return function
  specs = [P(*[None] * axis, split) for axis in (*group_axes, out)]
  return jax.shard_map(function, in_specs=tuple(specs[:-1]), out_specs=specs[-1])


def _exchange(slots: Array, *, outwards: bool) -> Array:
  """Moves [e, g, c, w] from split groups to split experts (outwards), or back."""
  split = _batch_axes()
  if "expert" not in split:
    return slots
  home = P(None, split)
  away = P("expert", tuple(name for name in split if name != "expert") or None)
  # Group blocks lie on the devices in the order of the axes, `expert` the innermost; a
  # tiled all-to-all concatenates them in just this order: no value changes its place.
  move = functools.partial(
    jax.lax.all_to_all,
    axis_name="expert",
    split_axis=0 if outwards else 1,
    concat_axis=1 if outwards else 0,
    tiled=True,
  )
  before, after = (home, away) if outwards else (away, home)
  return jax.shard_map(move, in_specs=before, out_specs=after)(slots)


# -- gather: rows move by index, forwards and backwards --------------------------------
# Routes hold a map and its inverse, so the gradient of a gather is a gather too. The
# derivative that JAX would take is a scatter-add: serial on CPU, slow on TPU. Choices
# are looped over (k is 1 or 2), as XLA's CPU reductions over [.., k, w] can be slow.


def _spread(x: Array, routes: Routes) -> Array:
  """x [g, s, w] -> the experts' slots [e, g, c, w]; 0 in an empty slot."""
  return _per_device(spread_rows, (0, 0, 0), 1)(x, routes.slot, routes.entry)


def _combine(slots: Array, routes: Routes, tokens: int) -> Array:
  """Slots [e, g, c, w] -> [g, s, w]: each token's served choices times their gates."""
  del tokens  # the routes know
  combine = _per_device(combine_rows, (1, 0, 0, 0), 0)
  return combine(slots, routes.gate, routes.slot, routes.entry)


def _rows(source: Array, index: Array) -> Array:
  """source [r, ...], index int32[...] -> [..., ...]; zeros where the index is r."""
  return jnp.take(source, index, axis=0, mode="fill", fill_value=0)


def _flat(x: Array, axes: int) -> Array:
  """Merges the leading `axes` axes into one of rows: [a, b, w] -> [a * b, w]."""
  return x.reshape(-1, *x.shape[axes:])


def _slot_rows(slot: Array, e: int, c: int) -> Array:
  """slot int32[g, s, k] -> its row of flattened slots [e, g, c]; e * g * c is none."""
  g = slot.shape[0]
  group = jnp.arange(g, dtype=jnp.int32)[:, None, None]
  return jnp.where(slot < e * c, (slot // c * g + group) * c + slot % c, e * g * c)


def _entry_rows(entry: Array, entries: int, per_row: int) -> Array:
  """entry int32[g, e, c] < `entries` -> [e, g, c] rows of g groups, or one past them.

  A row holds `per_row` entries: k for the row of a token, 1 for that of a choice.
  """
  g = entry.shape[0]
  group = jnp.arange(g, dtype=jnp.int32)[None, :, None]
  entry, rows = jnp.swapaxes(entry, 0, 1), entries // per_row
  return jnp.where(entry < entries, group * rows + entry // per_row, g * rows)


@jax.custom_vjp
def spread_rows(x: Array, slot: Array, entry: Array) -> Array:
  """One device's x [g, s, w] -> slots [e, g, c, w]; slot and entry as in `Routes`."""
  _, s, k = slot.shape
  return _rows(_flat(x, 2), _entry_rows(entry, s * k, k))


def _spread_forward(x, slot, entry):
  return spread_rows(x, slot, entry), slot


def _spread_backward(slot, d):
  e, _, c, _ = d.shape
  index = _slot_rows(slot, e, c)
  terms = [_rows(_flat(d, 3), i) for i in _choices(index)]
  return functools.reduce(jnp.add, terms), None, None


spread_rows.defvjp(_spread_forward, _spread_backward)


@jax.custom_vjp
def combine_rows(slots: Array, gate: Array, slot: Array, entry: Array) -> Array:
  """One device's slots [e, g, c, w] -> [g, s, w]; the others as in `Routes`."""
  e, _, c, _ = slots.shape
  index = _slot_rows(slot, e, c)
  terms = [
    _rows(_flat(slots, 3), i).astype(jnp.float32) * a[..., None]
    for i, a in zip(_choices(index), _choices(gate))
  ]
  return functools.reduce(jnp.add, terms).astype(slots.dtype)


def _combine_forward(slots, gate, slot, entry):
  return combine_rows(slots, gate, slot, entry), (slots, gate, slot, entry)


def _combine_backward(kept, d):
  slots, gate, slot, entry = kept
  e, _, c, _ = slots.shape
  _, s, k = slot.shape
  gates = _rows(_flat(gate, 3), _entry_rows(entry, s * k, 1))  # [e, g, c]
  rows = _rows(_flat(d, 2), _entry_rows(entry, s * k, k)).astype(jnp.float32)
  to_slots = (rows * gates[..., None]).astype(slots.dtype)
  d = d.astype(jnp.float32)
  to_gate = [
    # In two dimensions: XLA's CPU reductions are fifty times slower in some of four.
    jnp.sum(_flat(_rows(_flat(slots, 3), i).astype(jnp.float32) * d, 2), axis=-1)
    for i in _choices(_slot_rows(slot, e, c))
  ]
  return to_slots, jnp.stack(to_gate, -1).reshape(gate.shape), None, None


combine_rows.defvjp(_combine_forward, _combine_backward)


def _choices(x: Array) -> list[Array]:
  return [x[:, :, i] for i in range(x.shape[2])]


# -- gather, where slots choose tokens: a token may be in any number of slots ----------


def _take(x: Array, routes: Taken) -> Array:
  """x [g, s, w] -> the experts' slots [e, g, c, w]; 0 in an empty slot."""

  def take(x, token):
    _, s, _ = x.shape
    return _rows(_flat(x, 2), _entry_rows(token, s, 1))

  return _per_device(take, (0, 0), 1)(x, routes.token)


def _add(slots: Array, routes: Taken, tokens: int) -> Array:
  """Slots [e, g, c, w] -> [g, s, w]: each token's slots, times their gates."""

  def add(slots, gate, token):
    _, g, _, w = slots.shape
    weighted = slots.astype(jnp.float32) * jnp.swapaxes(gate, 0, 1)[..., None]
    index = _entry_rows(token, tokens, 1)  # one past the rows: dropped
    y = jnp.zeros((g * tokens, w), jnp.float32).at[index].add(weighted, mode="drop")
    return y.reshape(g, tokens, w).astype(slots.dtype)

  return _per_device(add, (1, 0, 0), 0)(slots, routes.gate, routes.token)


# -- einsum: mixtures, and the readable reference of the others ------------------------


def _dense(routes: Routes | Taken | Mixed, tokens: int) -> Mixed:
  """Returns the routes as weights f32[g, s, e, c]: 1 where a token holds a slot."""
  if isinstance(routes, Mixed):
    return routes
  if isinstance(routes, Taken):
    hot = jax.nn.one_hot(routes.token, tokens, axis=1)  # none for an empty slot
    return Mixed(spread=hot, combine=hot * routes.gate[:, None])
  g, e, c = routes.entry.shape
  hot = jax.nn.one_hot(routes.slot, e * c)  # [g, s, k, e * c]; none for index e * c
  return Mixed(
    spread=jnp.sum(hot, axis=2).reshape(g, tokens, e, c),
    combine=jnp.einsum("gskr,gsk->gsr", hot, routes.gate).reshape(g, tokens, e, c),
  )


def _einsum_in(x: Array, routes: Mixed) -> Array:
  return jnp.einsum("gsec,gsw->egcw", routes.spread.astype(x.dtype), x)


def _einsum_out(slots: Array, routes: Mixed, tokens: int) -> Array:
  del tokens
  return jnp.einsum("gsec,egcw->gsw", routes.combine.astype(slots.dtype), slots)


_METHODS: dict[type, tuple[Callable[..., Array], Callable[..., Array]]] = {
  Routes: (_spread, _combine),
  Taken: (_take, _add),
  Mixed: (_einsum_in, _einsum_out),
}
