"""Trees of arrays by the paths of their leaves: flat, nested, compared."""

from collections.abc import Mapping
from typing import Any

import jax

SHOWN = 8  # differing leaves named in an error message


def flatten(tree: Any) -> dict[str, Any]:
  """Returns {"a/b/c": leaf} of a tree of dicts, tuples and dataclasses."""

  def name(path):
    keys = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(str(k) for k in keys)

  return {name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the tree of dicts of {"a/b/c": leaf}: the inverse of `flatten`."""
  out: dict[str, Any] = {}
  for path, value in flat.items():
    *folders, last = path.split("/")
    node = out
    for f in folders:
      node = node.setdefault(f, {})
    node[last] = value
  return out


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
  """Returns one line per leaf that a checkpoint and the model do not share.

  Args:
    saved: path -> something with a shape, as the checkpoint holds it.
    wanted: path -> something with a shape, as the config builds it.
  """
  lines = []
  for path in sorted({*saved, *wanted}):
    if path not in saved:
      lines.append(f"  {path}: {shape_of(wanted[path])} in the model, not in the file")
    elif path not in wanted:
      lines.append(f"  {path}: {shape_of(saved[path])} in the file, not in the model")
    elif shape_of(saved[path]) != shape_of(wanted[path]):
      lines.append(
        f"  {path}: {shape_of(saved[path])} in the file, "
        f"{shape_of(wanted[path])} in the model"
      )
  return lines


def shape_of(leaf) -> tuple[int, ...]:
  """Returns the shape of an array or of what stands for one; () of a number."""
  return tuple(getattr(leaf, "shape", ()) or ())
