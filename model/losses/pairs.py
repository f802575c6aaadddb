"""Small things that losses over pairs of modalities share; nothing of [b, b]."""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp

from model.losses import reduce
from model.types import Array, Batch

Pair = tuple[str, str]
NEGATIVES = ("rows", "ids")


def directions(pairs: Iterable[Pair]) -> Iterator[Pair]:
  """Yields each pair of modalities both ways round: (a, b), (b, a)."""
  for a, b in pairs:
    yield a, b
    yield b, a


def check(pairs: tuple[Pair, ...]) -> None:
  """Raises ValueError unless `pairs` is a tuple of pairs of modality names."""
  named = isinstance(pairs, tuple) and all(
    isinstance(p, tuple) and len(p) == 2 and all(isinstance(m, str) for m in p)
    for p in pairs
  )
  if not named or not pairs:
    raise ValueError(
      f'pairs = {pairs!r} must be pairs of modality names, such as (("image", "text"),)'
    )


def valid_rows(batch: Batch, rows: int, *names: str) -> Array:
  """Returns bool[b]: the rows that are valid and have what is named.

  Args:
    batch: "valid" bool[b] and "<name>_valid" bool[b] count where they are there.
    rows: b.
    *names: of z: modalities or views.
  """
  valid = jnp.ones(rows, bool)
  for key in ("valid", *(f"{name}_valid" for name in names)):
    if key in batch:
      valid &= batch[key].astype(bool)
  return valid


def labelled(x: Array) -> Array:
  """Returns bool[b]: the rows of x [b, p] that say something of their example.

  All zeros are what the transform `one_hot` makes of -1, unlabelled; but a number alone
  (p = 1) may well be 0.
  """
  return jnp.any(x != 0, axis=1) | (x.shape[1] == 1)


def masked_mean(x: Array, valid: Array) -> Array:
  """Returns f32[]: the mean of x f32[b] where valid bool[b]; 0 if nothing is."""
  total = jnp.sum(jnp.where(valid, x, 0.0))
  return total / jnp.maximum(jnp.sum(valid.astype(jnp.float32)), 1.0)


def positive(a: Array, b: Array) -> Array:
  """Returns f32[b]: a_i . b_i, of a and b [b, d]."""
  return jnp.sum(a.astype(jnp.float32) * b.astype(jnp.float32), axis=-1)


def ids(batch: Batch) -> Array:
  """Returns batch["id"] i32[b]; raises ValueError if there is none."""
  if "id" not in batch:
    raise ValueError(
      f'the loss tells rows apart by batch["id"], i32[b]; got {sorted(batch)}'
    )
  return batch["id"]


def check_negatives(negatives: str) -> None:
  """Raises ValueError unless `negatives` is one of NEGATIVES."""
  if negatives not in NEGATIVES:
    raise ValueError(f"negatives = {negatives!r} must be one of {NEGATIVES}")


def no_negatives(batch: Batch, negatives: str) -> reduce.Exclude:
  """Returns the pairs to exclude: of one row ("rows"), or of one id ("ids")."""
  return "diagonal" if negatives == "rows" else (ids(batch), ids(batch))


def count_same(marks: Array, valid: Array, *, strategy: str, tile: int | None) -> Array:
  """Returns f32[b]: how many valid rows share the mark i32[b], the row itself too."""
  nothing = jnp.zeros((marks.shape[0], 1), jnp.float32)
  return reduce.pair_sum(
    _one_if_same,
    nothing,
    nothing,
    0.0,
    valid=valid,
    positive=(marks, marks),
    strategy=strategy,
    tile=tile,
  )


def _one_if_same(s: Array, same: Array) -> Array:
  del s
  return same.astype(jnp.float32)


def log_total(*parts: Array) -> Array:
  """Returns f32[b]: log of the sum of exp of parts f32[b]; no nan if all are -inf."""
  stack = jnp.stack(parts)
  none = jnp.all(jnp.isneginf(stack), axis=0)
  total = jax.nn.logsumexp(jnp.where(none[None, :], 0.0, stack), axis=0)
  return jnp.where(none, -jnp.inf, total)
