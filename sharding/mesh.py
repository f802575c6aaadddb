"""The device mesh: which chips split the batch, parameters, experts and heads.

Axes, outermost first: `data` (replicas), `fsdp` (replicas that also split the
parameters), `expert` (replicas that also split the experts), `tensor` (chips that share
one example). The batch is split over the first three.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from model import catalogue
from model.types import BATCH_AXES, MESH_AXES

_ROUTING = "config.model.moe.group"


def make(config: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
  """Returns the mesh over all devices with axes data, fsdp, expert and tensor (Auto).

  Args:
    config: `config.mesh`, axis -> number of chips; absent is 1, one may be -1: what is
      left.
    devices: default all of `jax.devices()`, of every process and slice.

  Raises:
    ValueError: an unknown axis, or sizes whose product is not the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = shape(config, len(devices))
  grid = arrange(tuple(sizes.values()), devices)
  # Auto: XLA chooses what is not said; jax.shard_map refuses Explicit axes of inputs
  # that carry no sharding.
  return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def shape(config: Mapping[str, int], count: int) -> dict[str, int]:
  """Returns axis -> size of the mesh over `count` devices, with -1 inferred.

  Raises:
    ValueError: an unknown axis, or sizes whose product is not `count`.
  """
  for axis in config:
    if axis not in MESH_AXES:
      known = list(MESH_AXES)
      raise ValueError(
        f"unknown key config.mesh.{axis}: {catalogue.near_misses(axis, known)}"
      )
  sizes = {axis: int(config.get(axis, 1)) for axis in MESH_AXES}
  said = " ".join(f"{axis}={size}" for axis, size in sizes.items())
  for axis, size in sizes.items():
    if size < 1 and size != -1:
      raise ValueError(
        f"mesh {said}: {axis}={size} is no number of devices. "
        f"Set config.mesh.{axis} to 1 or more, or to -1: what is left."
      )
  free = [axis for axis, size in sizes.items() if size == -1]
  if len(free) > 1:
    raise ValueError(
      f"mesh {said}: only one axis can be -1. Set config.mesh.{free[1]} to a number."
    )
  product = math.prod(size for size in sizes.values() if size != -1)
  fits = count % product == 0 if free else count == product
  if not fits:
    wrong = "does not divide" if count % product else "uses only a part of the"
    raise ValueError(
      f"mesh {said} = {product} {wrong} {count} devices. Set config.mesh so that the "
      f"product of its axes is {count}, or set one of them to -1: what is left."
    )
  if free:
    sizes[free[0]] = count // product
  return sizes


def arrange(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
  """Returns the devices as an array of shape `sizes`, near ones along the last axes.

  Several slices (TPU pods joined by the data-centre network) are laid along the
  outermost axes that can hold them, so that `data` crosses the slow links first.
  """
  slices = {getattr(d, "slice_index", 0) for d in devices}
  if len(slices) == 1 or devices[0].platform != "tpu":
    return _grid(sizes, devices)
  outer, left = [], len(slices)
  for size in sizes:  # greedy and complete: len(slices) divides the product of sizes
    outer.append(math.gcd(size, left))
    left //= outer[-1]
  inner = [size // o for size, o in zip(sizes, outer, strict=True)]
  return mesh_utils.create_hybrid_device_mesh(
    inner, outer, devices, allow_split_physical_axes=True
  )


def _grid(sizes: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
  try:
    return mesh_utils.create_device_mesh(sizes, devices)
  except NotImplementedError:  # no assignment keeps each torus axis whole
    return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)


def batch_shards(mesh: Mesh) -> int:
  """Returns into how many parts the mesh splits the global batch."""
  return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of a global batch [b, ...]: axis 0 over data, fsdp, expert."""
  return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of an array that every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch(
  batch_size: int,
  mesh: Mesh,
  microbatches: int = 1,
  group: int = 1,
  key: str = _ROUTING,
) -> None:
  """Checks that a global batch splits evenly into microbatches, shards and groups.

  Args:
    batch_size: `config.batch_size`, global.
    mesh: the mesh that holds the batch.
    microbatches: `config.microbatches`.
    group: `config.model.moe.group` in examples, 1 without sparse layers; every shard of
      a microbatch holds whole routing groups. Likewise of other groups.
    key: what sets `group`.

  Raises:
    ValueError: the batch does not split evenly; with the arithmetic.
  """
  shards = batch_shards(mesh)
  sizes = "*".join(str(mesh.shape[axis]) for axis in BATCH_AXES)
  split = f"{'*'.join(BATCH_AXES)} = {sizes}"
  if batch_size < 1:
    raise ValueError(
      f"batch {batch_size} is empty. Set config.batch_size to 1 or more."
    )
  if batch_size % shards:
    raise ValueError(
      f"batch {batch_size} is not divisible by {split} = {shards} "
      f"({batch_size} % {shards} = {batch_size % shards}). "
      f"Set config.batch_size to {_near(batch_size, shards)}, or change config.mesh."
    )
  if microbatches < 1 or batch_size % (microbatches * shards):
    raise ValueError(
      f"batch {batch_size} cannot be split into microbatches = {microbatches} that are "
      f"each divisible by {split} = {shards}. Set config.microbatches to a divisor of "
      f"{batch_size} / {shards} = {batch_size // shards}, "
      f"or config.batch_size to a multiple of {max(microbatches, 1) * shards}."
    )
  chunk = batch_size // microbatches
  if group < 1 or chunk // shards % group:
    kind = "routing groups" if key == _ROUTING else "groups"
    raise ValueError(
      f"batch {batch_size} / microbatches {microbatches} / shards {shards} = "
      f"{chunk // shards} examples, which are not whole {kind} of {group}. "
      f"Set {key} to a divisor of {chunk // shards}, "
      f"or config.batch_size to a multiple of {microbatches * shards * max(group, 1)}."
    )


def _near(number: int, factor: int) -> str:
  below = number // factor * factor
  return f"{below} or {below + factor}" if below else f"{factor}"
