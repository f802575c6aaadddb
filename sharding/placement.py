"""Arrays onto chips: parameters born in their shards, batches joined from all hosts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
import functools
import math
import re
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
import numpy as np

from model.types import BATCH_AXES
from sharding import mesh as meshes
from sharding import rules as tables

AFFINE = "_affine"  # ends the name of what is left to do to an image


def init_sharded(fn: Callable[..., Any], layout: Any, mesh: Mesh, *args: Any) -> Any:
  """Returns `fn(*args)`, a tree of arrays, computed straight into its shards.

  No device ever holds more than its own part: the initialisers are compiled with the
  output shardings and draw only the values that they keep.

  Args:
    fn: e.g. `lambda key: towers.init(key, batch)["params"]`; traced once for the shapes
      and once for the program.
    layout: `config.sharding.rules`, or a tree of shardings like the output of `fn`.
    mesh: the mesh.
    *args: of `fn`; the same on every process.
  """
  if tables.is_table(layout):
    layout = tables.specs(jax.eval_shape(fn, *args), mesh, layout)
  with jax.set_mesh(mesh):
    return jax.jit(fn, out_shardings=layout)(*args)


@functools.cache
def data_shard(mesh: Mesh) -> tuple[int, int]:
  """Returns (index, count): which share of every batch this process must load.

  (process_index, process_count), except where the tensor axis spans processes: those
  hold the same rows and must load the same share.
  """
  owners = np.vectorize(lambda d: d.process_index, otypes=[int])(mesh.devices)
  return share(owners, jax.process_index())


def share(owners: np.ndarray, process: int) -> tuple[int, int]:
  """Returns (index, count) of the rows that `process` feeds.

  Args:
    owners: int[data, fsdp, expert, tensor], the process of each device of the mesh.
    process: the process that asks.

  Raises:
    ValueError: processes whose rows overlap in part only.
  """
  rows = owners.reshape(math.prod(owners.shape[: len(BATCH_AXES)]), -1)
  held: dict[tuple[int, ...], list[int]] = {}
  for p in np.unique(owners).tolist():
    blocks = tuple(np.flatnonzero((rows == p).any(axis=1)).tolist())
    held.setdefault(blocks, []).append(p)
  if sum(map(len, held)) != len(rows):
    raise ValueError(
      f"processes hold overlapping parts of the batch: {held} (batch blocks -> "
      "processes). Set config.mesh.tensor so that it divides the chips of a process, "
      "or is a multiple of them."
    )
  index = next(i for i, b in enumerate(sorted(held)) if process in held[b])
  return index, len(held)


def put_batch(host_batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Returns the global batch {name: [b, ...]}, sharded over the mesh on axis 0.

  Images that come as bytes, uint8[b, h, w, c], with `<name>_affine` f32[b, 2, c] beside
  them (the transform `normalize` for the device) become f32: bytes * scale - offset.

  Args:
    host_batch: this process's rows, {name: [b / data_shard(mesh)[1], ...]}.
    mesh: the mesh.

  Raises:
    ValueError: names with different numbers of rows, values that no device holds, or
      rows that do not split over this process's devices.
  """
  sharding = meshes.batch_sharding(mesh)
  _, count = data_shard(mesh)
  rows = _rows(host_batch)
  shards = meshes.batch_shards(mesh)
  if rows * count % shards:
    raise ValueError(
      f"batch {rows * count} (= {rows} rows * {count} loading processes) is not "
      f"divisible by {'*'.join(BATCH_AXES)} = {shards}. "
      "Set config.batch_size to a multiple, or change config.mesh."
    )
  batch = {
    name: jax.make_array_from_process_local_data(
      sharding, _narrow(name, array), (rows * count, *array.shape[1:])
    )
    for name, array in host_batch.items()
  }
  affine = {n: batch.pop(n) for n in list(batch) if n.endswith(AFFINE)}
  names = [name.removesuffix(AFFINE) for name in affine]
  return batch | {n: _scaler(mesh)(batch[n], affine[n + AFFINE]) for n in names}


@functools.cache
def _scaler(mesh: Mesh) -> Callable[[jax.Array, jax.Array], jax.Array]:
  """Returns the jitted (uint8[b, h, w, c], f32[b, 2, c]) -> f32[b, h, w, c]."""

  def scaled(image: jax.Array, affine: jax.Array) -> jax.Array:
    scale, offset = (affine[:, i, None, None] for i in range(2))
    return image.astype(affine.dtype) * scale - offset

  return jax.jit(scaled, out_shardings=meshes.batch_sharding(mesh))


def explain(
  tree: Any,
  mesh: Mesh | AbstractMesh,
  rules: Iterable[Sequence[Any]] = (),
  merge: bool = False,
) -> str:
  """Returns a table: path, shape, dtype, rule, spec, bytes per chip, and the totals.

  Args:
    tree: arrays or `jax.ShapeDtypeStruct`s: parameters, or a whole train state.
    mesh: the mesh; an `AbstractMesh` does, so that a pod can be planned on a laptop.
    rules: `config.sharding.rules`, put before the default ones.
    merge: one line for arrays that differ in the numbers of their paths only, such as
      those of equal blocks: `block_*` and how many; the bytes are of all of them.
  """
  rules = tables.table(rules)
  tables.check(rules, mesh)
  count = total = per_chip = 0
  groups: dict[tuple[str, ...], list[tuple[str, int]]] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    assigned = tables.assign(tables.path_of(path), leaf.shape, mesh, rules)
    shard = NamedSharding(mesh, assigned.spec).shard_shape(tuple(leaf.shape))
    size = math.prod(shard) * leaf.dtype.itemsize
    pattern = re.sub(r"\d+", "*", assigned.path) if merge else assigned.path
    shape = "x".join(map(str, leaf.shape)) or "()"
    spec, notes = _spec_text(assigned.spec), "; ".join(assigned.notes)
    key = (pattern, shape, str(leaf.dtype), assigned.rule, spec, notes)
    groups.setdefault(key, []).append((assigned.path, size))
    count += math.prod(leaf.shape)
    total += math.prod(leaf.shape) * leaf.dtype.itemsize
    per_chip += size
  lines: list[tuple[str, ...]] = [
    ("path", "shape", "dtype", "rule", "spec", "bytes/chip", "notes")
  ]
  for (pattern, *middle, notes), members in groups.items():
    name = f"{pattern} ({len(members)})" if len(members) > 1 else members[0][0]
    lines.append((name, *middle, f"{sum(size for _, size in members):,}", notes))
  chips = math.prod(mesh.shape.values())
  axes = " ".join(f"{axis}={size}" for axis, size in mesh.shape.items())
  return "\n".join(
    [
      *_columns(lines),
      f"total: {count:,} parameters, {total:,} bytes, {per_chip:,} bytes/chip "
      f"on {chips} chips ({axes})",
    ]
  )


def _columns(lines: list[tuple[str, ...]]) -> list[str]:
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]


def _spec_text(spec: Any) -> str:
  parts = ["+".join(p) if isinstance(p, tuple) else p or "-" for p in spec]
  return ",".join(parts) or "replicated"


def _narrow(name: str, array: np.ndarray) -> np.ndarray:
  # Devices hold 32 bits. JAX would wrap larger ids round without a word.
  if array.dtype.kind not in "iu" or array.dtype.itemsize < 8:
    return array
  narrow = array.astype(np.int32 if array.dtype.kind == "i" else np.uint32)
  if not np.array_equal(narrow, array):
    raise ValueError(f"batch[{name!r}] has {array.dtype} values beyond {narrow.dtype}")
  return narrow


def _rows(batch: Mapping[str, np.ndarray]) -> int:
  sizes = {}
  for name, array in batch.items():
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "biufV":
      kind = getattr(array, "dtype", type(array).__name__)
      raise ValueError(
        f"batch[{name!r}] is {kind}; expected a numeric numpy array. "
        "End config.data.transforms with one that drops or encodes this key."
      )
    if array.ndim == 0:
      raise ValueError(f"batch[{name!r}] has shape (); expected [rows, ...]")
    sizes[name] = array.shape[0]
  if len(set(sizes.values())) != 1:
    raise ValueError(f"the rows of a batch differ: {sizes}; expected one number")
  return next(iter(sizes.values()))
