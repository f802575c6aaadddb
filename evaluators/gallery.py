"""Ranks of a gallery for every query, exact, in memory that no gallery exceeds.

An item of the gallery is a positive of a query when their ids are equal. The rank of a
query is the number of negatives at least as similar to it as its best positive, so a
collapsed model, to which everything is equally similar, ranks last and not first.

Small galleries are ranked by numpy, on every host alike. Large ones stay in the host's
memory and pass through the devices tile by tile: queries are split over the mesh, so
that each device ranks its own and none waits for another. Items of a query's id are
looked at first, which takes little since both sides are visited in order of ids; then
one pass over the gallery counts what is nearer.

Axis letters: q queries, m items, t items of a tile, d embedding, k nearest kept.
"""

import collections
from collections.abc import Callable
import dataclasses
import functools

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
import numpy as np

from evaluators import context as context_lib
from model.types import BATCH_AXES
from sharding import mesh as meshes

# Similarities nearer than this are ties: the same product computed at another place of
# a matrix multiplication differs by a few units of f32's last digit.
TIE = 1e-6
SMALL = 2**24  # pairs up to which numpy is done before a program is compiled
BLOCK = 4096  # queries of one device at a time
TILE = 8192  # items at a time
_GROUP = 64  # items whose greatest similarity stands for them
_AHEAD = 2  # tiles sent before the host waits: bounds the tiles in a device's memory


@dataclasses.dataclass(frozen=True)
class Neighbours:
  """What each query found.

  Attributes:
    rank: i64[q], 0-based and pessimistic.
    top: i64[q, k], positions in the gallery, the most similar first.
    score: f32[q, k], their similarities.
    positives: i64[q], how many items of the gallery are right.
  """

  rank: np.ndarray
  top: np.ndarray
  score: np.ndarray
  positives: np.ndarray


def rank(
  queries: np.ndarray,
  gallery: np.ndarray,
  query_id: np.ndarray,
  gallery_id: np.ndarray,
  *,
  mesh: Mesh,
  k: int = 5,
) -> Neighbours:
  """Returns `search` of a small gallery, `stream` of another; arguments are theirs."""
  if len(queries) * len(gallery) <= SMALL:
    return search(queries, gallery, query_id, gallery_id, k=k)
  return stream(queries, gallery, query_id, gallery_id, mesh=mesh, k=k)


def search(
  queries: np.ndarray,
  gallery: np.ndarray,
  query_id: np.ndarray,
  gallery_id: np.ndarray,
  *,
  k: int = 5,
  tile: int = 1024,
) -> Neighbours:
  """Ranks a gallery for every query; memory is O(tile * len(gallery)).

  Args:
    queries: f32[q, d], unit norm.
    gallery: f32[m, d], unit norm.
    query_id: i32[q].
    gallery_id: i32[m].
    k: nearest items to return, at most m.
    tile: queries compared at a time.

  Raises:
    ValueError: a query without a positive in the gallery, or embeddings not finite.
  """
  check_finite(queries, gallery)
  k = min(k, len(gallery))
  parts = []
  for start in range(0, len(queries), tile):
    part = slice(start, start + tile)
    similarity = queries[part] @ gallery.T  # f32[tile, m]
    positive = query_id[part, None] == gallery_id[None, :]
    _check_positives(positive.any(axis=1), query_id[part])
    best = np.where(positive, similarity, -np.inf).max(axis=1, keepdims=True)
    rank = ((similarity >= best - TIE) & ~positive).sum(axis=1)
    some = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    # Stable and from sorted positions: ties come out the same on every machine.
    some.sort(axis=1)
    order = np.argsort(-np.take_along_axis(similarity, some, 1), axis=1, kind="stable")
    top = np.take_along_axis(some, order, 1)
    score = np.take_along_axis(similarity, top, 1)
    parts.append((rank, top, score, positive.sum(axis=1)))
  rank, top, score, positives = (np.concatenate(x) for x in zip(*parts))
  return Neighbours(rank, top, score, positives)


def stream(
  queries: np.ndarray,
  gallery: np.ndarray,
  query_id: np.ndarray,
  gallery_id: np.ndarray,
  *,
  mesh: Mesh,
  k: int = 5,
  block: int = BLOCK,
  tile: int = TILE,
) -> Neighbours:
  """Returns what `search` does, from tiles; a device holds O(block * tile).

  Every host enters with the same arrays, and returns the same. Of equally similar items
  those that come first are kept, in order.

  Args:
    queries: f32[q, d], unit norm.
    gallery: f32[m, d], unit norm.
    query_id: i32[q].
    gallery_id: i32[m].
    mesh: its batch axes split the queries.
    k: nearest items to return, at most m.
    block: queries of a device at a time.
    tile: items at a time.

  Raises:
    ValueError: as of `search`.
  """
  check_finite(queries, gallery)
  q, m = len(queries), len(gallery)
  by_id = np.argsort(gallery_id, kind="stable")
  ids = gallery_id[by_id]
  first, last = np.searchsorted(ids, query_id), np.searchsorted(ids, query_id, "right")
  _check_positives(last > first, query_id)
  k, tile = min(k, m), min(tile, _power_of_two(m))
  shards = meshes.batch_shards(mesh)
  block = shards * min(block, _power_of_two(-(-q // shards)))
  programs = _programs(mesh, min(k, tile), k)
  rank, top = np.zeros(q, np.int64), np.zeros((q, k), np.int64)
  score = np.zeros((q, k), np.float32)
  order = np.argsort(query_id, kind="stable")
  for start in range(0, q, block):
    rows = order[start : start + block]
    right = by_id[first[rows].min() : last[rows].max()]
    found = _one_block(
      programs,
      (_padded(queries[rows], block), _padded(query_id[rows], block)),
      (gallery, gallery_id),
      right,
      (mesh, tile, k),
    )
    rank[rows], top[rows], score[rows] = (x[: len(rows)] for x in found)
  return Neighbours(rank, top, score, (last - first).astype(np.int64))


def check_finite(queries: np.ndarray, gallery: np.ndarray) -> None:
  """Raises ValueError where embeddings are not finite."""
  for name, x in (("query", queries), ("gallery", gallery)):
    if not np.isfinite(x).all():
      raise ValueError(f"{name} embeddings hold NaN or infinity: the model diverged")


def _check_positives(some: np.ndarray, ids: np.ndarray) -> None:
  if not some.all():
    lost = ids[~some][:5].tolist()
    raise ValueError(f"no item of the gallery has the ids {lost} of queries")


def _one_block(programs, query, items, right, how):
  """Returns (rank i64[b], top i64[b, k], score f32[b, k]) of one block of queries."""
  best_of, visit = programs
  mesh, tile, k = how
  gallery, gallery_id = items
  split = meshes.batch_sharding(mesh)
  whole = meshes.replicated(mesh)
  q, q_id = (_put(x, split) for x in query)
  b = len(query[0])

  def tiles(positions=None):
    count = len(gallery if positions is None else positions)
    for start in range(0, count, tile):
      at = slice(start, start + tile)
      at = at if positions is None else positions[at]
      x, ids = gallery[at], gallery_id[at]
      span = np.asarray([start, len(x)], np.int32)
      rows = _padded(x, tile), _padded(ids, tile), span
      yield tuple(_put(part, whole) for part in rows)

  best = _put(np.full(b, -np.inf, np.float32), split)
  best = _through(lambda best, part: best_of(best, q, q_id, *part), best, tiles(right))
  found = (
    _put(np.zeros(b, np.int32), split),
    _put(np.zeros((b, k), np.int32), split),
    _put(np.full((b, k), -np.inf, np.float32), split),
  )
  found = _through(
    lambda found, part: visit(found, best, q, q_id, *part),
    found,
    tiles(),
  )
  rank, top, score = (context_lib.to_numpy(x) for x in found)
  return rank.astype(np.int64), top.astype(np.int64), score


def _through(step: Callable, carry, parts):
  """Returns the carry after all parts, with few of them on their way at a time."""
  waiting: collections.deque = collections.deque()
  for part in parts:
    carry = step(carry, part)
    waiting.append(carry)
    if len(waiting) > _AHEAD:
      jax.block_until_ready(waiting.popleft())
  return carry


@functools.cache
def _programs(mesh: Mesh, near: int, k: int) -> tuple[Callable, Callable]:
  """Returns the two jitted steps over tiles; no device needs another's rows."""

  def best_of(best, q, q_id, g, g_id, span):
    positive = (q_id[:, None] == g_id[None]) & _real(g, span)[None]
    similarity = jnp.where(positive, _similarity(q, g), -jnp.inf)
    return jnp.maximum(best, jnp.max(similarity, axis=1))

  def visit(found, best, q, q_id, g, g_id, span):
    rank, top, score = found
    real = _real(g, span)[None]
    similarity = _similarity(q, g)
    wrong = (q_id[:, None] != g_id[None]) & real
    rank += jnp.sum(
      wrong & (similarity >= best[:, None] - TIE), axis=1, dtype=jnp.int32
    )
    new, at = top_k(jnp.where(real, similarity, -jnp.inf), near)
    # top_k keeps the first of equals, and what was there comes first.
    score, place = lax.top_k(jnp.concatenate([score, new], axis=1), k)
    top = jnp.concatenate([top, span[0] + at], axis=1)
    return rank, jnp.take_along_axis(top, place, axis=1), score

  rows, whole = PartitionSpec(BATCH_AXES), PartitionSpec()
  tile = (rows, rows, whole, whole, whole)

  def mapped(f, carried):
    specs = (*carried, *tile)
    f = jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=carried[0])
    return jax.jit(f)

  return mapped(best_of, (rows,)), mapped(visit, ((rows,) * 3, rows))


def top_k(x: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
  """Returns `lax.top_k` of x f32[q, t]: of equals the first ones, in order.

  Long rows take it in two steps. The k greatest lie in the k groups whose own greatest
  are so: only these are sorted, and the rest takes no more than a maximum.
  """
  q, t = x.shape
  if t % _GROUP or t // _GROUP <= 2 * k:
    return lax.top_k(x, k)
  groups = x.reshape(q, t // _GROUP, _GROUP)
  _, best = lax.top_k(jnp.max(groups, axis=2), k)
  best = jnp.sort(best, axis=1)  # back in order of positions, for equals
  some = jnp.take_along_axis(groups, best[:, :, None], axis=1)
  values, place = lax.top_k(some.reshape(q, k * _GROUP), k)
  group = jnp.take_along_axis(best, place // _GROUP, axis=1)
  return values, group * _GROUP + place % _GROUP


def _similarity(q: jax.Array, g: jax.Array) -> jax.Array:
  # HIGHEST: by default TPUs and GPUs round to fewer bits, and all would be ties.
  return jnp.einsum("qd,td->qt", q, g, precision=lax.Precision.HIGHEST)


def _real(g: jax.Array, span: jax.Array) -> jax.Array:
  return jnp.arange(g.shape[0], dtype=jnp.int32) < span[1]


def _put(x: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
  """Returns an array that every host holds whole, on the devices."""
  return jax.make_array_from_callback(x.shape, sharding, lambda part: x[part])


def _padded(x: np.ndarray, rows: int) -> np.ndarray:
  """Returns x with zeros behind it, so that all tiles share a program."""
  return np.pad(x, [(0, rows - len(x)), *[(0, 0)] * (x.ndim - 1)])


def _power_of_two(n: int) -> int:
  return 1 << (n - 1).bit_length()
