"""Small things that losses over pairs of modalities share; nothing of [b, b]."""

from collections.abc import Iterable, Iterator

import jax.numpy as jnp

from model.types import Array, Batch

Pair = tuple[str, str]


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


def valid_rows(batch: Batch, rows: int) -> Array:
  """Returns bool[b]: batch["valid"], or all True where the batch has none."""
  valid = batch.get("valid")
  return jnp.ones(rows, bool) if valid is None else valid.astype(bool)


def masked_mean(x: Array, valid: Array) -> Array:
  """Returns f32[]: the mean of x f32[b] where valid bool[b]; 0 if nothing is."""
  total = jnp.sum(jnp.where(valid, x, 0.0))
  return total / jnp.maximum(jnp.sum(valid.astype(jnp.float32)), 1.0)


def positive(a: Array, b: Array) -> Array:
  """Returns f32[b]: a_i . b_i, of a and b [b, d]."""
  return jnp.sum(a.astype(jnp.float32) * b.astype(jnp.float32), axis=-1)
