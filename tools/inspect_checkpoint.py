"""Tells what a checkpoint holds, whether it is whole, and how two differ.

python -m tools.inspect_checkpoint runs/limoe_emoji
python -m tools.inspect_checkpoint runs/a/checkpoints/step_00000500 --params
python -m tools.inspect_checkpoint runs/a --diff runs/b

Needs no accelerator. Reads the files once for their digests (not with --fast) and no
array, but for --diff, which holds a part of each side at a time. Exit status 1: it is
damaged, or the two differ.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import datetime
import functools
import json
import math
import pathlib
import sys
from typing import Any

from absl import logging
import jax
import numpy as np
import orbax.checkpoint as ocp

from training import environment, integrity, parameters
from training.trees import flatten

NAME = "python -m tools.inspect_checkpoint"
MOST = 1 << 28  # bytes that --diff reads of a side at a time


@dataclasses.dataclass(frozen=True)
class Checkpoint:
  """One step's folder, read as far as asked.

  Attributes:
    folder: of the step, or of parameters alone.
    tree: shape and dtype of every array, as they were saved.
  """

  folder: pathlib.Path
  tree: Any

  @functools.cached_property
  def leaves(self) -> dict[str, Any]:
    """Path -> shape and dtype of every array."""
    return flatten(self.tree)

  @property
  def workdir(self) -> pathlib.Path:
    """Where config.json is: beside `checkpoints`, or in the folder itself."""
    inside = self.folder.parent.name == "checkpoints"
    return self.folder.parents[1] if inside else self.folder

  def arrays(self, paths: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns some arrays on the host."""
    wanted = set(paths)
    leaves = [x if p in wanted else ocp.PLACEHOLDER for p, x in self.leaves.items()]
    kind = ocp.RestoreArgs(restore_type=np.ndarray)
    args = ocp.args.PyTreeRestore(
      item=jax.tree.unflatten(jax.tree.structure(self.tree), leaves),
      restore_args=jax.tree.map(lambda _: kind, self.tree),
    )
    with ocp.PyTreeCheckpointer() as reader:
      found = flatten(reader.restore(self.folder / "state", args=args))
    return {path: found[path] for path in paths}

  def json(self, *names: str) -> dict[str, Any]:
    """Returns a JSON file of the step's, {} where there is none or it is broken."""
    try:
      return json.loads(self.folder.joinpath(*names).read_text())
    except (OSError, ValueError):
      return {}


def read(where: str, asked_by: str = "WHERE") -> Checkpoint:
  """Returns a checkpoint without its arrays.

  Args:
    where: a workdir, its checkpoints folder, or one step's folder.
    asked_by: the argument that names it, for the error message.

  Raises:
    FileNotFoundError: no checkpoint there.
    ValueError: it cannot be read.
  """
  folder = pathlib.Path(parameters.step_folder(where, asked_by))
  with ocp.PyTreeCheckpointer() as reader:
    try:
      found = reader.metadata(folder / "state").item_metadata
    except Exception as e:  # of many kinds, for a folder that is damaged
      raise ValueError(f"{folder} cannot be read: {type(e).__name__}: {e}") from e
  return Checkpoint(folder, getattr(found, "tree", found))


def verdict(checkpoint: Checkpoint, fast: bool = False) -> tuple[bool, str]:
  """Returns (whether nothing is known to be wrong, what is known of the files)."""
  if fast:
    return True, "not looked at (--fast)"
  files = (integrity.METADATA, integrity.FILE)
  bare = not any((checkpoint.folder / name).exists() for name in files)
  found = None if bare else integrity.damage(checkpoint.folder)
  if found is None:
    return True, "not known: it has no digests"
  if found:
    return False, "DAMAGED: " + "; ".join(found)
  count = len(checkpoint.json(integrity.FILE)["files"])
  return True, f"whole: {count} files are as they were written (sha256)"


def overview(checkpoint: Checkpoint, files: str) -> list[tuple[str, str]]:
  """Returns (title, text) of what is known without reading an array.

  Args:
    checkpoint: the checkpoint.
    files: the verdict on its files.
  """
  folder, config = checkpoint.folder, _config(checkpoint)
  rows = [("checkpoint", str(folder))]
  if folder.name[5:].isdigit():
    total = config.get("total_steps")
    rows.append(("step", f"{int(folder.name[5:])}" + (f" of {total}" if total else "")))
    others = sorted(parameters.steps_in(folder.parent))
    rows.append(("steps kept", ", ".join(map(str, others))))
  made = checkpoint.json(integrity.METADATA).get("commit_timestamp_nsecs")
  if made:
    when = datetime.datetime.fromtimestamp(made / 1e9, datetime.UTC)
    rows.append(("saved", f"{when:%Y-%m-%d %H:%M:%S} UTC"))
  sizes = [p.stat().st_size for p in folder.rglob("*") if p.is_file()]
  rows.append(("on disk", f"{sum(sizes):,} bytes in {len(sizes)} files"))
  rows.append(("integrity", files))
  data = checkpoint.json("data", "metadata")
  if data:
    rows.append(("data", ", ".join(f"{k} {v}" for k, v in data.items())))
  if config:
    rows += _summary(config)
  rows += [(k, v) for k, v in environment.read(str(checkpoint.workdir)).items()]
  metrics = checkpoint.json("metrics", "metrics")
  rows += [("metric", f"{name} {value:.4g}") for name, value in metrics.items()]
  return rows


def groups(leaves: Mapping[str, Any], each: bool = False) -> list[tuple[str, ...]]:
  """Returns a table: part, arrays, elements, bytes; or every array with its shape."""
  table: list[tuple[str, ...]]
  if each:
    table = [("array", "shape", "dtype", "bytes")]
    for path, x in leaves.items():
      shape, dtype = str(tuple(x.shape)), str(np.dtype(x.dtype))
      table.append((path, shape, dtype, f"{_bytes(x):,}"))
    return table
  parts: dict[str, list[Any]] = {}
  for path, leaf in leaves.items():
    keys = path.split("/")
    depth = 3 if keys[0] in ("params", "ema", "frozen") else 1
    parts.setdefault("/".join(keys[:depth]), []).append(leaf)
  table = [("part", "arrays", "elements", "bytes")]
  for part, found in [*parts.items(), ("total", list(leaves.values()))]:
    elements = sum(math.prod(x.shape) for x in found)
    size = sum(map(_bytes, found))
    table.append((part, f"{len(found)}", f"{elements:,}", f"{size:,}"))
  return table


def differences(one: Checkpoint, two: Checkpoint) -> Iterator[str]:
  """Yields a line per array, and per key of the configs, that is not the same."""
  same = []
  for path in sorted({*one.leaves, *two.leaves}):
    sides = [c.leaves.get(path) for c in (one, two)]
    a, b = ("absent" if x is None else f"{x.dtype}{list(x.shape)}" for x in sides)
    if a == b:
      same.append(path)
    else:
      yield f"{path}: {a} | {b}"
  for paths in _batches(same, one.leaves):
    left, right = (c.arrays(paths) for c in (one, two))
    for path in paths:
      if left[path].tobytes() != right[path].tobytes():
        yield f"{path}: {_distance(left[path], right[path])}"
  for name in ("data", "config"):
    left, right = (
      flatten(c.json("data", "metadata") if name == "data" else _config(c))
      for c in (one, two)
    )
    for key in sorted({*left, *right}):
      if left.get(key) != right.get(key):
        yield f"{name}.{key}: {left.get(key)!r} | {right.get(key)!r}"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog=NAME,
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("where", help="a workdir, or one step's folder")
  parser.add_argument("--params", action="store_true", help="show every array")
  parser.add_argument("--diff", help="another one, to compare with")
  parser.add_argument("--fast", action="store_true", help="do not check the files")
  args = parser.parse_args(argv)
  try:
    checkpoint = read(args.where)
    other = read(args.diff, "--diff") if args.diff else None
  except (OSError, ValueError) as e:
    print(f"{NAME}: {e}", file=sys.stderr)
    return 2
  whole, files = verdict(checkpoint, args.fast)
  if other is None:
    for title, text in overview(checkpoint, files):
      print(f"{title:12} {text}")
    print()
    print(_columns(groups(checkpoint.leaves, args.params)))
    return 0 if whole else 1
  lines = list(differences(checkpoint, other))
  print("\n".join(lines) or f"equal bit for bit: {len(checkpoint.leaves)} arrays")
  return 1 if lines else 0


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
  try:
    return json.loads((checkpoint.workdir / "config.json").read_text())
  except (OSError, ValueError):
    return {}


def _summary(config: Mapping[str, Any]) -> list[tuple[str, str]]:
  """Returns rows on the run; keys that an older config lacks are left out."""
  flat = flatten(config)

  def some(*keys: str) -> str:
    named = ((k.removesuffix("/name").split("/")[-1], k) for k in keys)
    return ", ".join(f"{name} {flat[k]}" for name, k in named if k in flat)

  modalities = ", ".join(config.get("model", {}).get("modalities", {}))
  return [
    ("run", some("name", "seed", "batch_size", "objective/name", "optimizer/name")),
    (
      "model",
      f"{modalities}; "
      + some("model/embed_dim", "model/trunk/width", "model/trunk/depth")
      + f"; {some('model/shared_trunk', 'model/moe/every', 'model/moe/experts')}",
    ),
  ]


def _batches(paths: Sequence[str], leaves: Mapping[str, Any]) -> Iterator[list[str]]:
  """Yields the paths in groups of about MOST bytes."""
  group: list[str] = []
  size = 0
  for path in paths:
    if group and size + _bytes(leaves[path]) > MOST:
      yield group
      group, size = [], 0
    group.append(path)
    size += _bytes(leaves[path])
  if group:
    yield group


def _bytes(leaf: Any) -> int:
  return math.prod(leaf.shape) * np.dtype(leaf.dtype).itemsize


def _distance(a: np.ndarray, b: np.ndarray) -> str:
  unequal = int(np.sum(a != b))
  gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
  return f"{unequal:,} of {a.size:,} differ, by {gap.max():.3g} at most"


def _columns(table: Sequence[Sequence[str]]) -> str:
  widths = [max(map(len, column)) for column in zip(*table, strict=True)]
  return "\n".join(
    "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])])
    for row in table
  )


if __name__ == "__main__":
  jax.config.update("jax_platforms", "cpu")  # leave the accelerator to who trains on it
  logging.set_verbosity(logging.FATAL)  # Orbax warns of what is told here
  sys.exit(main())
