"""What is reduced over pairs, one tile of scores at a time; arrays of one device.

A score is s_ij = scale * a_i . b_j + bias, where the product of two sets of vectors is
what model.losses.sets says. A reduction keeps a carry per row (and, if it is `both`,
per column), absorbs tiles in any order, and knows its own gradient by score, so that
the backward pass can make each tile again instead of keeping it.

Axis letters: b rows, c columns of the tile at hand, d embedding.
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from model.losses import sets
from model.losses.sets import dot
from model.types import BATCH_AXES, Array


class Side(NamedTuple):
  """One side of the pairs.

  Attributes:
    x: [n, d] embeddings, f32 or bf16; or sets of one kind, on both sides.
    mark: i32[n]; a row and a column of equal mark are the same thing: on the diagonal.
    place: i32[n], the position in the global array.
    valid: bool[n], False rows count for nothing on the other side.
    given: [n, d2], whose inner products are a second score; None if there is none.
  """

  x: Array | sets.Set
  mark: Array
  place: Array
  valid: Array
  given: Array | None = None


def same(row: Side, col: Side) -> Array:
  """Returns bool[b, c]: the pairs of equal mark."""
  return row.mark[:, None] == col.mark[None, :]


def scores(row: Side, col: Side, scale: Array, bias: Array) -> Array:
  """Returns f32[b, c]: scale * a . b + bias, or of sets what `sets` says of them."""
  return sets.products(row.x, col.x) * scale + bias


def batch_axes() -> tuple[tuple[str, ...], int]:
  """Returns the axes of the ambient mesh that split the batch, and into how many parts.

  Raises:
    ValueError: inside a shard_map over them, where there is no global batch.
  """
  mesh = jax.sharding.get_abstract_mesh()
  size = dict(mesh.shape)
  axes = tuple(x for x in BATCH_AXES if size.get(x, 1) > 1)
  kinds = dict(zip(mesh.axis_names, mesh.axis_types))
  if any(kinds[x] == jax.sharding.AxisType.Manual for x in axes):
    raise ValueError(f"call losses on the global batch, outside shard_map over {axes}")
  return axes, math.prod(size[x] for x in axes)


def scatter(x: Array, axes: tuple[str, ...]) -> Array:
  """Sums x [n, ...] over the devices of `axes`; each keeps its own rows.

  One axis after the other: of a scatter over several axes at once the TPU compiler
  makes a sum of the whole, which sends twice as much.
  """
  for axis in axes:  # rows lie on the devices in the order of the axes
    x = lax.psum_scatter(x, axis, tiled=True)
  return x


def gather(x: Array, axes: tuple[str, ...]) -> Array:
  """Joins the rows x [n, ...] of the devices of `axes`, in their order.

  One axis after the other: of a gather over several at once the TPU compiler can make
  a sum of the whole, which sends twice as much.
  """
  for axis in reversed(axes):
    x = lax.all_gather(x, axis, tiled=True)
  return x


def _along(x: Array, axis: int) -> Array:
  """Lines up one number per row (axis 1 is reduced) or per column (0) with a tile."""
  return x[:, None] if axis == 1 else x[None, :]


@dataclasses.dataclass(frozen=True)
class LogSumExp:
  """log sum_j exp s_ij over the valid columns that are not excluded, -inf if none.

  Attributes:
    both: also over the valid rows, for each column.
    exclude: leave out the pairs of equal mark.
    only: leave out all others.
    fn: elementwise (s f32[...], same bool[...]) -> f32[...], put in the place of s; of
      finite slope everywhere, also where s is not counted; must close over no array.
  """

  both: bool
  exclude: bool
  only: bool = False
  fn: Callable[[Array, Array], Array] | None = None

  def start(self, n: int) -> Any:
    """Returns the carry of n rows: the maximum, and the sum of exp(s - maximum)."""
    return jnp.full(n, -jnp.inf, jnp.float32), jnp.zeros(n, jnp.float32)

  def absorb(self, carry: Any, s: Array, row: Side, col: Side, axis: int) -> Any:
    """Returns the carry of rows (axis 1) or columns (0) after the tile s f32[b, c]."""
    top, total = carry
    s, keep = self._map(s, row, col), self._keep(row, col, axis)
    new = jnp.maximum(top, jnp.max(jnp.where(keep, s, -jnp.inf), axis=axis))
    base = jnp.where(new == -jnp.inf, 0.0, new)  # -inf - -inf is nan
    terms = jnp.where(keep, jnp.exp(s - _along(base, axis)), 0.0)
    return new, total * jnp.exp(top - base) + jnp.sum(terms, axis=axis)

  def scatter(self, carry: Any, axes: tuple[str, ...]) -> Any:
    """Sums the carries of all columns over devices; each keeps its own columns."""
    top, total = carry
    new = lax.pmax(top, axes)
    base = jnp.where(new == -jnp.inf, 0.0, new)
    total = scatter(total * jnp.exp(top - base), axes)
    start = lax.axis_index(axes) * total.shape[0]
    return lax.dynamic_slice_in_dim(new, start, total.shape[0]), total

  def finish(self, carry: Any) -> Array:
    """Returns f32[n]."""
    top, total = carry
    return jnp.where(top == -jnp.inf, top, top + jnp.log(total))

  def pull(self, s: Array, row: Side, col: Side, rows: Any, cols: Any) -> Array:
    """Returns f32[b, c], the gradient by s; rows, cols: (carry, cotangent)."""
    s, back = jax.vjp(lambda s: self._map(s, row, col), s)
    ds = self._pull(s, row, col, rows, 1)
    return back(ds + self._pull(s, row, col, cols, 0) if self.both else ds)[0]

  def dense(self, s: Array, row: Side, col: Side) -> tuple[Array, Array | None]:
    """The definition, in plain JAX, from all scores f32[b, b2]."""
    s = self._map(s, row, col)
    cols = self._dense(s, row, col, 0) if self.both else None
    return self._dense(s, row, col, 1), cols

  def _dense(self, s: Array, row: Side, col: Side, axis: int) -> Array:
    keep = self._keep(row, col, axis)
    some = jnp.any(keep, axis=axis)
    # Where nothing is kept, all is: the value is thrown away, the gradient is finite.
    kept = keep | ~_along(some, axis)
    return jnp.where(some, jax.nn.logsumexp(s, axis=axis, where=kept), -jnp.inf)

  def _keep(self, row: Side, col: Side, axis: int) -> Array:
    valid = col.valid[None, :] if axis == 1 else row.valid[:, None]
    if self.exclude or self.only:
      return valid & (same(row, col) if self.only else ~same(row, col))
    return jnp.broadcast_to(valid, (row.valid.shape[0], col.valid.shape[0]))

  def _map(self, s: Array, row: Side, col: Side) -> Array:
    return s if self.fn is None else self.fn(s, same(row, col))

  def _pull(self, s: Array, row: Side, col: Side, residual: Any, axis: int) -> Array:
    (top, total), g = residual
    # Not exp(s - lse): the rounding of lse, of the size of the scores, would be an
    # error shared by the whole row, and reach the temperature's gradient unaveraged.
    base = jnp.where(top == -jnp.inf, 0.0, top)
    ratio = g / jnp.where(total == 0, 1.0, total)
    terms = jnp.exp(s - _along(base, axis)) * _along(ratio, axis)
    return jnp.where(self._keep(row, col, axis), terms, 0.0)


@dataclasses.dataclass(frozen=True)
class PairSum:
  """sum_j fn(s_ij, same_ij) over the valid columns, 0 for a row that is not valid.

  Attributes:
    fn: elementwise (s f32[...], same bool[...]) -> f32[...] or a tuple of them; must
      close over no array.
    given: fn has a third argument, the second score, by which it is not differentiated.
    both: always False; a sum over the rows is `jnp.sum` of it.
  """

  fn: Callable[..., Any]
  given: bool = False
  both: bool = False

  def start(self, n: int) -> Any:
    """Returns the sums so far of n rows."""
    score = jax.ShapeDtypeStruct((), jnp.float32)
    more = (score,) if self.given else ()
    sums = jax.eval_shape(self.fn, score, jax.ShapeDtypeStruct((), jnp.bool), *more)
    return jax.tree.map(lambda _: jnp.zeros(n, jnp.float32), sums)

  def absorb(self, carry: Any, s: Array, row: Side, col: Side, axis: int) -> Any:
    """Returns the sums of the rows after the tile s f32[b, c]."""
    keep, terms = self._keep(row, col), self._of(row, col)(s)

    def add(total, x):
      return total + jnp.sum(jnp.where(keep, x, 0.0), axis=axis)

    return jax.tree.map(add, carry, terms)

  def finish(self, carry: Any) -> Any:
    """Returns f32[n], or a tuple of them."""
    return carry

  def pull(self, s: Array, row: Side, col: Side, rows: Any, cols: Any) -> Array:
    """Returns f32[b, c], the gradient by s; rows: (carry, cotangent)."""
    del cols
    _, pull = jax.vjp(self._of(row, col), s)
    (ds,) = pull(jax.tree.map(lambda g: jnp.broadcast_to(g[:, None], s.shape), rows[1]))
    return ds

  def dense(self, s: Array, row: Side, col: Side) -> tuple[Any, None]:
    """The definition, in plain JAX, from all scores f32[b, b2]."""
    return self.absorb(self.start(row.mark.shape[0]), s, row, col, 1), None

  def _of(self, row: Side, col: Side) -> Callable[[Array], Any]:
    """Returns fn of the score alone, for the tile at hand; of 0 where it is not kept.

    Rows that are not valid may hold anything, also what fn overflows on: its slope
    there would be nan, even by a cotangent of 0.
    """
    keep = self._keep(row, col)
    more: tuple[Array, ...] = ()
    if row.given is not None and col.given is not None:
      more = (jnp.where(keep, dot(row.given, col.given, (1, 1)), 0.0),)
    return lambda s: self.fn(jnp.where(keep, s, 0.0), same(row, col), *more)

  def _keep(self, row: Side, col: Side) -> Array:
    return row.valid[:, None] & col.valid[None, :]


@dataclasses.dataclass(frozen=True)
class TopK:
  """The k greatest scores of each row and their columns' indices; has no gradient.

  Attributes:
    k: how many; (-inf, -1) fills the places for which there is no column.
    exclude: leave out the pairs of equal mark.
    both: always False.
  """

  k: int
  exclude: bool
  both: bool = False

  def start(self, n: int) -> Any:
    """Returns the carry of n rows: scores f32[n, k], descending; indices i32[n, k]."""
    shape = (n, self.k)
    return jnp.full(shape, -jnp.inf, jnp.float32), jnp.full(shape, -1, jnp.int32)

  def absorb(self, carry: Any, s: Array, row: Side, col: Side, axis: int) -> Any:
    """Returns the carry after the tile s f32[b, c]."""
    assert axis == 1
    keep = col.valid[None, :] & (~same(row, col) if self.exclude else True)
    s = jnp.where(keep, s, -jnp.inf)
    index = jnp.broadcast_to(col.place[None, :], s.shape)
    index = jnp.where(keep, index, -1)
    top, place = lax.top_k(jnp.concatenate([carry[0], s], axis=1), self.k)
    index = jnp.concatenate([carry[1], index], axis=1)
    return top, jnp.take_along_axis(index, place, axis=1)

  def finish(self, carry: Any) -> Any:
    """Returns (f32[n, k], i32[n, k])."""
    return carry


def forward(op, row: Side, col: Side, scale, bias, tile: int, rows: Any, cols: Any):
  """Absorbs all pairs of row [b] and col [b2] in tiles [b, <= tile].

  Args:
    op: the reduction.
    row: of the carry `rows`.
    col: of the carry `cols`, None unless op.both.
    scale: f32[].
    bias: f32[].
    tile: columns at a time; memory is O(b * tile).
    rows: the carry of the rows so far.
    cols: the carry of the columns so far.

  Returns:
    The new (rows, cols).
  """

  def body(rows, item):
    part, cols = item
    s = scores(row, part, scale, bias)
    if op.both:
      cols = op.absorb(cols, s, row, part, 0)
    return op.absorb(rows, s, row, part, 1), cols

  return _over_tiles(body, rows, (col, cols), tile)


def backward(op, row: Side, col: Side, scale, bias, tile: int, rows: Any, cols: Any):
  """Makes the tiles of `forward` again and sums their gradients.

  Args:
    op: the reduction.
    row: the rows.
    col: the columns.
    scale: f32[].
    bias: f32[].
    tile: columns at a time.
    rows: (carry after `forward`, cotangent f32[b]).
    cols: (carry after `forward`, cotangent f32[b2]), or None unless op.both.

  Returns:
    f32 of the shapes of row.x and of col.x, both still to be multiplied by scale, and
    f32[] by bias.
  """

  def body(carry, item):
    da, dbias = carry
    part, cols = item
    ds = op.pull(scores(row, part, scale, bias), row, part, rows, cols)
    more, db = sets.pull_products(ds, row.x, part.x)
    return (jax.tree.map(jnp.add, da, more), dbias + jnp.sum(ds)), db

  zero = zeros(row.x), jnp.zeros((), jnp.float32)
  (da, dbias), db = _over_tiles(body, zero, (col, cols), tile)
  return da, db, dbias


def zeros(tree: Any) -> Any:
  """Returns f32 zeros of the shapes of `tree`."""
  return jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), tree)


def _over_tiles(body: Callable, carry: Any, items: Any, tile: int) -> tuple[Any, Any]:
  """Scans body over items [b2, ...] in equal tiles; padding is zero and not valid."""
  n = jax.tree.leaves(items)[0].shape[0]
  count = -(-n // tile)
  if count <= 1:
    return body(carry, items)
  width = -(-n // count)
  pad = count * width - n

  def split(x):
    x = jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)) if pad else x
    return x.reshape(count, width, *x.shape[1:])

  carry, out = lax.scan(body, carry, jax.tree.map(split, items))
  return carry, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:n], out)
