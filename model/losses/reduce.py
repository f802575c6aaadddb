"""Reductions over all pairs of two global arrays, in memory O(b * tile).

The only file of the losses that communicates. The arrays are global: under `jax.jit`
with a mesh set by `jax.set_mesh`, their rows are split over the batch axes (data, fsdp,
expert) and replicated over tensor. Values and gradients do not depend on strategy or
mesh.

Strategies, with b rows a, b columns, and p devices that share the batch:
  dense  plain XLA on scores [b, b], which the backward pass keeps; the reference.
  tiled  each device gathers the columns, [b, d], and goes through them tile by tile;
         the backward pass makes the tiles again (4/3 of the flops), so that none is
         kept. Column sums are scattered back. With one device nothing is gathered.
  ring   the columns travel round the devices, [b/p, d] at a time, and their gradients
         with them: memory O(b/p * (d + tile)), p hops each way. With one device: tiled.
  auto   dense if one tile holds all columns of one device; ring if the gathered columns
         would pass GATHER_BYTES; tiled otherwise.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from model.losses import reductions, sets
from model.losses.reductions import Side
from model.losses.sets import Set
from model.types import Array

STRATEGIES = ("auto", "dense", "tiled", "ring")
GATHER_BYTES = 256 * 2**20  # per device; 87k columns of 768 f32
TILE_SCORES = 2**22  # scores of one tile if `tile` is not given: 16 MiB of f32

Exclude = str | tuple[Array, Array] | None
Fn = Callable[[Array, Array], Array]
Valid = Array | tuple[Array | None, Array | None] | None
Scalar = Array | float
Rows = Array | Set


def row_logsumexp(
  a: Rows,
  b: Rows,
  scale: Scalar,
  *,
  valid: Array | None = None,
  exclude: Exclude = None,
  only: Exclude = None,
  fn: Fn | None = None,
  strategy: str = "auto",
  bias: Scalar = 0.0,
  tile: int | None = None,
) -> Array:
  """Returns f32[b]: log sum_j exp(scale * a_i . b_j + bias) over the valid columns j.

  Differentiable in a, b, scale and bias. f32 throughout but for bf16 operands, whose
  products are summed in f32.

  Args:
    a: [b, d], or a Set of each row, to be scored as model.losses.sets says.
    b: [b2, d], or the same kind of Set.
    scale: f32[].
    valid: bool[b2], columns that count; None: all. A row without any gives -inf.
    exclude: pairs to leave out: None, "diagonal" (j = i), or marks (i32[b], i32[b2]):
      the pairs of equal mark.
    only: likewise, the only pairs to keep; not together with exclude.
    fn: elementwise (s f32[...], same bool[...]) -> f32[...], in the place of the score;
      of finite slope everywhere. `same`: the pairs of exclude or only, else j = i.
    strategy: one of STRATEGIES.
    bias: f32[].
    tile: columns at a time; None: TILE_SCORES / rows.

  Raises:
    ValueError: shapes that do not fit, or an unknown strategy.
  """
  marks, op = _logsumexp(exclude, only, fn, both=False)
  row, col = sides(a, b, (None, valid), marks)
  return _reduce(op, row, col, scale, bias, strategy, tile)[0]


def symmetric_logsumexp(
  a: Array,
  b: Array,
  scale: Scalar,
  *,
  valid: Valid = None,
  exclude: Exclude = None,
  only: Exclude = None,
  fn: Fn | None = None,
  strategy: str = "auto",
  bias: Scalar = 0.0,
  tile: int | None = None,
) -> tuple[Array, Array]:
  """Returns row_logsumexp of (a, b) f32[b] and of (b, a) f32[b2] from one pass.

  Args:
    a: [b, d].
    b: [b2, d].
    scale: f32[].
    valid: bool[b] of both sides, or (bool[b], bool[b2]).
    exclude, only, fn: as in `row_logsumexp`.
    strategy: one of STRATEGIES.
    bias: f32[].
    tile: columns at a time; None: TILE_SCORES / rows.

  Raises:
    ValueError: shapes that do not fit, or an unknown strategy.
  """
  marks, op = _logsumexp(exclude, only, fn, both=True)
  row, col = sides(a, b, valid, marks)
  return _reduce(op, row, col, scale, bias, strategy, tile)


def pair_sum(
  fn: Callable[..., Any],
  a: Rows,
  b: Rows,
  scale: Scalar,
  *,
  valid: Valid = None,
  positive: str | tuple[Array, Array] = "diagonal",
  given: tuple[Array, Array] | None = None,
  strategy: str = "auto",
  bias: Scalar = 0.0,
  tile: int | None = None,
) -> Any:
  """Returns f32[b]: sum_j fn(scale * a_i . b_j + bias, positive_ij), j valid columns.

  Args:
    fn: elementwise (s f32[...], positive bool[...]) -> f32[...], differentiated by s
      only; it must close over no array. May return a tuple: so does `pair_sum`.
    a: [b, d], or a Set of each row.
    b: [b2, d], or the same kind of Set.
    scale: f32[].
    valid: bool[b] of both sides, or (bool[b], bool[b2]); a row not valid gives 0.
    positive: "diagonal" (j = i), or marks (i32[b], i32[b2]): the pairs of equal mark.
    given: (g [b, d2], h [b2, d2]): fn gets g_i . h_j as a third argument, such as the
      similarity to a teacher. Has no gradient.
    strategy: one of STRATEGIES.
    bias: f32[].
    tile: columns at a time; None: TILE_SCORES / rows.

  Raises:
    ValueError: shapes that do not fit, or an unknown strategy.
  """
  row, col = sides(a, b, valid, positive)
  if given is not None:
    for side, x in zip((row, col), given):
      if x.ndim != 2 or x.shape[0] != side.valid.shape[0]:
        raise ValueError(f"given must be [{side.valid.shape[0]}, d2]; got {x.shape}")
    given = lax.stop_gradient(given)
    row, col = (x._replace(given=g) for x, g in zip((row, col), given))
  op = reductions.PairSum(fn, given=given is not None)
  return _reduce(op, row, col, scale, bias, strategy, tile)[0]


def row_top_k(
  a: Array,
  b: Array,
  k: int,
  *,
  valid: Array | None = None,
  exclude: Exclude = None,
  strategy: str = "auto",
  tile: int | None = None,
) -> tuple[Array, Array]:
  """Returns the k greatest a_i . b_j of each row, f32[b, k], and their j, i32[b, k].

  Has no gradient: score b[j] again where one is wanted. Places for which there is no
  column hold (-inf, -1). Equal scores come in any order.

  Args:
    a: [b, d].
    b: [b2, d].
    k: at least 1.
    valid: bool[b2], columns that count; None: all.
    exclude: as in `row_logsumexp`.
    strategy: one of STRATEGIES.
    tile: columns at a time; None: TILE_SCORES / rows.

  Raises:
    ValueError: shapes that do not fit, or an unknown strategy.
  """
  a, b = lax.stop_gradient((a, b))
  row, col = sides(a, b, (None, valid), exclude or "none")
  op = reductions.TopK(k, exclude=exclude is not None)
  return _reduce(op, row, col, 1.0, 0.0, strategy, tile)[0]


@dataclasses.dataclass(frozen=True)
class Plan:
  """How the pairs are gone through; `axes` are the mesh axes that split the batch."""

  strategy: str
  axes: tuple[str, ...]
  shards: int
  tile: int


def _logsumexp(exclude: Exclude, only: Exclude, fn: Fn | None, both: bool):
  """Returns the marks of the pairs, and the reduction that heeds them."""
  if exclude is not None and only is not None:
    raise ValueError("give exclude or only, not both: each says which pairs to keep")
  op = reductions.LogSumExp(both, exclude is not None, only is not None, fn)
  return (exclude if only is None else only) or "none", op


def sides(a: Rows, b: Rows, valid: Valid, marks: str | tuple) -> tuple[Side, Side]:
  """Checks the public arguments and fills in what was left out."""
  x, y = (v.x if isinstance(v, Set) else v for v in (a, b))
  ndim = 3 if isinstance(a, Set) else 2
  if x.ndim != ndim or y.ndim != ndim or x.shape[-1] != y.shape[-1]:
    want = "[b, d] and [b2, d], or Tokens or Samples of [b, k, d] and [b2, r, d]"
    raise ValueError(f"a and b must be {want}; got {x.shape} and {y.shape}")
  if x.dtype != y.dtype or x.dtype != jnp.bfloat16:
    a, b = jax.tree.map(lambda v: v.astype(jnp.float32), (a, b))
  valid = valid if isinstance(valid, tuple) else (valid, valid)
  index = tuple(jnp.arange(v.shape[0], dtype=jnp.int32) for v in (x, y))
  if marks == "none" or marks == "diagonal":
    marks = index
  elif isinstance(marks, str):
    raise ValueError(f"{marks!r} must be 'diagonal' or (i32[b], i32[b2])")
  both = []
  for side, m, i, v in zip((a, b), marks, index, valid):
    for name, given in (("valid", v), ("marks", m)):
      if given is not None and given.shape != i.shape:
        raise ValueError(f"{name} must be [{i.shape[0]}]; got {given.shape}")
    v = jnp.ones(i.shape, bool) if v is None else v.astype(bool)
    both.append(Side(side, m, i, v))
  return both[0], both[1]


def plan_of(strategy: str, tile: int | None, row: Side, col: Side) -> Plan:
  """Returns how pairs of these sides are gone through; "auto" is decided here."""
  if strategy not in STRATEGIES:
    raise ValueError(f"strategy = {strategy!r} must be one of {STRATEGIES}")
  if tile is not None and tile < 1:
    raise ValueError(f"tile = {tile} must be at least 1")
  axes, shards = reductions.batch_axes()
  n = col.valid.shape[0]
  rows = -(-row.valid.shape[0] // shards)
  each = sets.numbers_per_pair(row.x, col.x)
  tile = tile or max(-(-512 // each), TILE_SCORES // max(rows * each, 1))
  if strategy == "auto":
    if shards == 1:
      strategy = "dense" if n <= tile else "tiled"
    else:
      gathered = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(col.x))
      strategy = "ring" if gathered > GATHER_BYTES else "tiled"
  return Plan(strategy, axes, shards, tile)


def _reduce(op, row: Side, col: Side, scale, bias, strategy: str, tile: int | None):
  """Returns op's (row output, column output or None) by the strategy asked for."""
  sets.check_scale(row.x, scale)
  plan = plan_of(strategy, tile, row, col)
  scale, bias = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
  if plan.strategy == "dense" and not isinstance(op, reductions.TopK):
    return op.dense(reductions.scores(row, col, scale, bias), row, col)
  if plan.strategy == "dense":
    plan = dataclasses.replace(plan, strategy="tiled", tile=col.valid.shape[0])
  n, n2 = row.valid.shape[0], col.valid.shape[0]
  row, col = _padded(row, plan.shards), _padded(col, plan.shards)
  if isinstance(op, reductions.TopK):
    out, cols = _finish(op, *carries(op, plan, row, col, scale, bias))
  else:
    out, cols = _tiles(op, plan, row, col, scale, bias)
  return jax.tree.map(lambda x: x[:n], out), None if cols is None else cols[:n2]


def _padded(side: Side, shards: int) -> Side:
  """Adds rows that are not valid until the devices can share them equally."""
  pad = -side.valid.shape[0] % shards
  if not pad:
    return side
  return jax.tree.map(lambda x: jnp.pad(x, [(0, pad)] + [(0, 0)] * (x.ndim - 1)), side)


def shard(plan: Plan, f: Callable, n_split: int, outs: Any) -> Callable:
  """Maps f over the devices: n_split arguments by rows, then scale and bias."""
  if plan.shards == 1:
    return f
  # The gradient does not go through shard_map: custom_vjp sums over devices itself.
  specs = (P(plan.axes),) * n_split + (P(), P())
  return jax.shard_map(f, in_specs=specs, out_specs=outs, check_vma=False)


def carries(op, plan: Plan, row: Side, col: Side, scale, bias):
  """Returns op's carries of all rows, and of all columns if it is `both`."""
  split = P(plan.axes)
  local = functools.partial(_forward, op, plan)
  return shard(plan, local, 2, (split, split))(row, col, scale, bias)


def _finish(op, rows: Any, cols: Any) -> tuple[Any, Any]:
  return op.finish(rows), op.finish(cols) if op.both else None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _tiles(op, plan: Plan, row: Side, col: Side, scale, bias):
  return _finish(op, *carries(op, plan, row, col, scale, bias))


def _tiles_fwd(op, plan: Plan, row: Side, col: Side, scale, bias):
  rows, cols = carries(op, plan, row, col, scale, bias)
  return _finish(op, rows, cols), (row, col, rows, cols, scale, bias)


def _tiles_bwd(op, plan: Plan, residuals, g):
  row, col, rows, cols, scale, bias = residuals
  rows, cols = (rows, g[0]), (cols, g[1]) if op.both else None
  split = P(plan.axes)
  local = functools.partial(_backward, op, plan)
  call = shard(plan, local, 4, (split, split, P(), P()))
  da, db, dscale, dbias = call(row, col, rows, cols, scale, bias)
  # None: marks, places and masks have no gradient.
  da, db = (Side(x, None, None, None) for x in (da, db))  # type: ignore[arg-type]
  return da, db, dscale, dbias


_tiles.defvjp(_tiles_fwd, _tiles_bwd)


def _forward(op, plan: Plan, row: Side, col: Side, scale, bias):
  """One device's part: its rows against all columns."""
  n = col.valid.shape[0]
  rows = op.start(row.valid.shape[0])
  ringing = plan.strategy == "ring" and plan.shards > 1
  if not ringing:
    col = _gather(plan, col)
    cols = op.start(n * plan.shards) if op.both else None
    rows, cols = reductions.forward(op, row, col, scale, bias, plan.tile, rows, cols)
    if op.both and plan.shards > 1:
      cols = op.scatter(cols, plan.axes)
  else:

    def hop(carry, _):
      rows, col, cols = carry
      # Sent before it is used, so that the transfer can hide behind the matmul.
      following = send(plan, col)
      rows, cols = reductions.forward(op, row, col, scale, bias, plan.tile, rows, cols)
      return (rows, following, send(plan, cols)), None

    start = (rows, col, op.start(n) if op.both else None)
    (rows, _, cols), _ = lax.scan(hop, start, length=plan.shards)
  return rows, cols


def _backward(op, plan: Plan, row: Side, col: Side, rows, cols, scale, bias):
  """One device's part of the gradient by row.x, col.x, scale and bias."""
  ringing = plan.strategy == "ring" and plan.shards > 1
  back = functools.partial(
    reductions.backward, op, row, scale=scale, bias=bias, tile=plan.tile, rows=rows
  )
  if not ringing:
    da, db, dbias = back(_gather(plan, col), cols=_gather(plan, cols))
    if plan.shards > 1:
      db = jax.tree.map(lambda x: reductions.scatter(x, plan.axes), db)
  else:

    def hop(carry, _):
      da, db, dbias, col, cols = carry
      following = send(plan, (col, cols))
      more_a, more_b, more_bias = back(col, cols=cols)
      da, db = jax.tree.map(jnp.add, (da, db), (more_a, more_b))
      # The gradient travels with its columns and is home after the last hop.
      return (da, send(plan, db), dbias + more_bias, *following), None

    start = (*reductions.zeros((row.x, col.x, jnp.float32(0))), col, cols)
    (da, db, dbias, *_), _ = lax.scan(hop, start, length=plan.shards)
  # d/dscale = sum_ij ds_ij a_i . b_j; da holds the sums over j (degree 1 in tokens).
  x, dx = (row.x.x, da.x) if isinstance(row.x, Set) else (row.x, da)
  dscale = jnp.sum(x.astype(jnp.float32) * dx)
  if plan.shards > 1:
    dscale, dbias = lax.psum((dscale, dbias), plan.axes)
  da, db = jax.tree.map(
    lambda d, x: (d * scale).astype(x.dtype), (da, db), (row.x, col.x)
  )
  return da, db, dscale, dbias


def _gather(plan: Plan, tree: Any) -> Any:
  if plan.shards == 1:
    return tree
  return jax.tree.map(lambda x: reductions.gather(x, plan.axes), tree)


def send(plan: Plan, tree: Any) -> Any:
  """Sends arrays to the next device of the ring, inside of `shard`."""
  ring = [(i, (i + 1) % plan.shards) for i in range(plan.shards)]
  return jax.tree.map(lambda x: lax.ppermute(x, plan.axes, ring), tree)
