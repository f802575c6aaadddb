"""Keys that outlive their step: a queue of the latest ones, a bank of one per example.

Both are split over devices by rows, by rules of sharding/rules.py that look for the
names here. A queue keeps the keys of one batch row side by side, [b, s, d], with b
split as the batch is: a new key is written where it was made, and the queue as columns,
[b * s, d], is the same memory.

Axis letters: b batch, s slots, d embedding, n rows of a bank.
"""

from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from model.types import Array, State

QUEUE = "queue"  # state[QUEUE][name] is a queue,
BANK = "bank"  # and state[BANK][name] a bank


class Columns(NamedTuple):
  """A queue as the columns of model.losses.reduce.

  Attributes:
    keys: f32[b * s, d].
    valid: bool[b * s], False where there is no key yet, or the row was not valid.
    ids: i32[b * s].
  """

  keys: Array
  valid: Array
  ids: Array


def queue(length: int, b: int, d: int) -> State:
  """Returns an empty queue of `length` keys: b rows of s = length / b slots.

  Raises:
    ValueError: a length that is not a number of whole batches.
  """
  if length < b or length % b:
    near = length // b * b
    fits = f"{near} or {near + b}" if near else f"{b}"
    raise ValueError(
      f"queue = {length} keys are not a number of batches of {b} ({length} % {b} = "
      f"{length % b}). Set config.objective.options.queue to {fits}, or change "
      "config.batch_size"
    )
  s = length // b
  return {
    "keys": jnp.zeros((b, s, d), jnp.float32),
    "valid": jnp.zeros((b, s), bool),
    "ids": jnp.zeros((b, s), jnp.int32),
    "next": jnp.zeros((), jnp.int32),  # the slot to write: of the oldest keys
  }


def push(held: State, keys: Array, valid: Array, ids: Array) -> State:
  """Returns the queue with a batch of keys in the place of the oldest batch.

  Args:
    held: of `queue`.
    keys: f32[b, d].
    valid: bool[b], rows whose keys count.
    ids: i32[b].
  """
  new = {"keys": keys, "valid": valid, "ids": ids}
  slot, slots = held["next"], held["valid"].shape[1]

  def write(old, x):
    x = lax.stop_gradient(x).astype(old.dtype)
    return lax.dynamic_update_slice_in_dim(old, x[:, None], slot, axis=1)

  out = {name: write(held[name], x) for name, x in new.items()}
  return {**out, "next": (slot + 1) % slots}


def columns(held: State) -> Columns:
  """Returns the keys of a queue as rows; those of one batch are `s` apart."""
  keys = held["keys"]
  flat = keys.reshape(-1, keys.shape[-1])
  return Columns(flat, held["valid"].reshape(-1), held["ids"].reshape(-1))


def bank(key: Array, n: int, d: int) -> State:
  """Returns a bank of n random rows of norm about 1, as CMC's (arXiv 1906.05849)."""
  limit = (3 / d) ** 0.5
  return {"rows": jax.random.uniform(key, (n, d), minval=-limit, maxval=limit)}


def inside(held: State, ids: Array) -> Array:
  """Returns bool[b]: the ids i32[b] for which the bank has a row, 0 <= id < n."""
  return (ids >= 0) & (ids < held["rows"].shape[0])


def read(held: State, ids: Array) -> Array:
  """Returns f32[b, d], the row of each id; another's for ids that are not inside."""
  return jnp.take(lax.stop_gradient(held["rows"]), ids, axis=0, mode="clip")


def blend(held: State, ids: Array, z: Array, valid: Array, momentum: float) -> State:
  """Returns the bank with rows moved to normalize(momentum * row + (1 - momentum) * z).

  Args:
    held: of `bank`.
    ids: i32[b]; of several rows of one id, the first valid one counts.
    z: f32[b, d], unit norm.
    valid: bool[b]; others, and ids that are not inside, change nothing.
    momentum: share of the old row.
  """
  n = held["rows"].shape[0]
  new = momentum * read(held, ids) + (1 - momentum) * lax.stop_gradient(z)
  square = jnp.sum(new * new, axis=-1, keepdims=True)
  new = new * lax.rsqrt(jnp.maximum(square, 1e-12))
  target = jnp.where(valid & inside(held, ids), ids, n)  # n is dropped
  target = jnp.where(_first(target), target, n)
  return {"rows": held["rows"].at[target].set(new, mode="drop")}


def _first(marks: Array) -> Array:
  """Returns bool[b]: the first row of each mark i32[b]."""
  # Two rows of one id would be written in no particular order.
  order = jnp.argsort(marks, stable=True)
  ordered = marks[order]
  new = jnp.concatenate([jnp.ones(1, bool), ordered[1:] != ordered[:-1]])
  return jnp.zeros(marks.shape, bool).at[order].set(new)
