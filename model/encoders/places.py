"""Where the tokens of each modality are in a trunk, and which of them is pooled."""

from collections.abc import Mapping

import jax.numpy as jnp

from model.encoders.config import Modality
from model.layers import packing
from model.layers.block import Streams
from model.layers.packing import Packed
from model.layers.pool import Pool
from model.types import Array, Batch, Metrics


def packed(
  present: list[Modality], batch: Batch, masks: Mapping[str, Array | None]
) -> tuple[dict[str, Packed], Metrics]:
  """Returns the places of the modalities that the batch has a plan of, and metrics."""
  packed: dict[str, Packed] = {}
  aux: Metrics = {}
  for m in present:
    plan = batch.get(f"{m.name}_pack")
    if m.pack and plan is not None:
      packed[m.name] = packing.layout(m.pack, plan, masks[m.name], m.name)
      aux |= packing.metrics(m.name, plan, packed[m.name])
  return packed, aux


def read(
  pools: Mapping[str, Pool],
  x: Streams,
  masks: Mapping[str, Array | None],
  packed: Mapping[str, Packed],
) -> dict[str, int | Array]:
  """Returns where in the trunk the token is that is pooled, of each with only one."""
  found: dict[str, int | Array] = {}
  for name, pool in pools.items():
    places = packed.get(name)
    n = x[name].shape[1] if places is None else places.slot.shape[1]
    at = pool.at(n, masks[name])
    if at is None or (places is not None and places.group > 1):
      continue
    # Rows of one example each begin with its first real token, and end with its last.
    if places is not None and not isinstance(at, int):
      at = places.lengths() - 1
    found[name] = at
  return found


def aligned(
  present: list[Modality], x: Streams, masks: Mapping[str, Array | None]
) -> dict[str, Packed]:
  """Returns the places of tokens as attention on a GPU can train on them.

  For padding a number of real tokens that come first: a mask would be a matrix that is
  read, and a gradient by it that nobody wants. And for cuDNN an even number of tokens.
  """
  places: dict[str, Packed] = {}
  for m in present:
    mask, shape = masks[m.name], x[m.name].shape[:2]
    multiple = 2 if m.trunk.attention == "cudnn" else 1
    if m.trunk.on_gpu and (mask is not None or shape[1] % multiple):
      places[m.name] = packing.alone(mask, shape, multiple=multiple)
  return places


def whole(mask: Array | Packed | None, x: Array) -> Array:
  """Returns bool[b, n]: the real ones of the tokens x [b, n, w]."""
  if isinstance(mask, Packed):
    return mask.real
  return jnp.ones(x.shape[:2], bool) if mask is None else mask


def of_example(mask: Array | Packed | None, x: Array, values: Array) -> Array:
  """Returns [b, n]: to each token of x [b, n, w] its example's of values [b]."""
  if isinstance(mask, Packed):
    return mask.of_example(values)
  return jnp.broadcast_to(values[:, None], x.shape[:2])
