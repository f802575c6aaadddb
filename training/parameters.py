"""Parameters taken from a checkpoint into another model, or written alone."""

from collections.abc import Mapping, Sequence
import math
import re
from typing import Any

from absl import logging
from etils import epath
import jax
import orbax.checkpoint as ocp

from training import integrity
from training.trees import SHOWN, differences, flatten, nest, shape_of


def init_from(
  path: str,
  params,
  shardings,
  asked_by: str = "config.init_from",
  only: Sequence[str] = (),
):
  """Returns `params` with every array replaced that a checkpoint holds in equal shape.

  Args:
    path: a workdir, its checkpoints folder, or one step's folder.
    params: the tree to fill.
    shardings: its shardings.
    asked_by: the key that names it, for the error message.
    only: regexes; arrays whose path none is found in are left alone. (): all.

  Returns:
    (params, report): the filled tree and lines saying what was kept from the start.

  Raises:
    FileNotFoundError: no checkpoint there.
    ValueError: not one array matches, or one of `only` is in no path of the model.
  """
  folder = step_folder(path, asked_by)
  integrity.check(folder, asked_by)
  with ocp.PyTreeCheckpointer() as reader:
    saved = _saved(reader, folder)
    wanted, placed = flatten(params), flatten(shardings)
    saved, chosen = _only(saved, only), _only(wanted, only)
    if not chosen:
      raise ValueError(
        f"{asked_by}: {tuple(only)} is found in no path of the model's parameters, "
        f"e.g. {next(iter(wanted))}. Set config.init_only to regexes that are."
      )
    match = {
      k for k, v in chosen.items() if k in saved and shape_of(saved[k]) == v.shape
    }
    if not match:
      lines = "\n".join(differences(saved, chosen)[:SHOWN])
      raise ValueError(
        f"{asked_by}: none of the {len(saved)} parameters in {folder} has the "
        f"path and shape of one of the model's {len(chosen)}, e.g.\n{lines}\n"
        "Set config.model as the config.json of that run has it."
      )
    item = {
      k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=placed[k])
      for k, v in chosen.items()
      if k in match
    }
    values = flatten(_read(reader, folder, item))
  report = differences(saved, chosen)
  for line in report:
    logging.info("%s: %s", asked_by, line.strip())
  leaves = {k: values.get(k, v) for k, v in wanted.items()}
  return jax.tree.unflatten(jax.tree.structure(params), list(leaves.values())), report


def taken(before, after) -> list[str]:
  """Returns a line for each group of arrays that `init_from` replaced.

  Args:
    before: the tree it was given.
    after: the one it returned.
  """
  counts: dict[str, list[int]] = {}
  for (path, old), new in zip(flatten(before).items(), flatten(after).values()):
    if old is not new:
      counts.setdefault("/".join(path.split("/")[:2]), []).append(math.prod(new.shape))
  return [
    f"  {group}: {len(sizes)} arrays, {sum(sizes):,} parameters"
    for group, sizes in counts.items()
  ]


def read_params(path: str, asked_by: str, averaged: bool = False) -> dict[str, Any]:
  """Returns all parameters of a checkpoint, {"towers": ..., ...}, on the first device.

  Args:
    path: as of `init_from`.
    asked_by: the flag that names it, for the error message.
    averaged: their moving average, where the checkpoint has one: what is evaluated.

  Raises:
    FileNotFoundError: no checkpoint there.
  """
  folder = step_folder(path, asked_by)
  integrity.check(folder, asked_by)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  with ocp.PyTreeCheckpointer() as reader:
    part = "ema" if averaged and _saved(reader, folder, "ema") else "params"
    item = {
      k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=here)
      for k, v in _saved(reader, folder, part).items()
    }
    return _read(reader, folder, item, part)


def write_params(path: str, params) -> None:
  """Writes parameters alone, as a step's folder that `init_from` reads.

  Raises:
    FileExistsError: there is a checkpoint already.
  """
  folder = epath.Path(path).absolute()
  if (folder / "state").exists():
    raise FileExistsError(f"{folder} holds a checkpoint already: name another folder")
  folder.mkdir(parents=True, exist_ok=True)
  with ocp.PyTreeCheckpointer() as writer:
    writer.save(folder / "state", {"params": params})
  if jax.process_index() == 0:
    integrity.write(folder)


def _saved(
  reader: ocp.PyTreeCheckpointer, folder, part: str = "params"
) -> dict[str, Any]:
  """Returns path -> shape and dtype of every parameter of a step; {} without any."""
  tree = reader.metadata(folder / "state").item_metadata
  return flatten(getattr(tree, "tree", tree).get(part, {}))


def _read(
  reader: ocp.PyTreeCheckpointer, folder, item, part: str = "params"
) -> dict[str, Any]:
  """Returns the parameters that `item` asks for: path -> shape, dtype and sharding."""
  nested = {part: nest(item)}
  restore_args = ocp.checkpoint_utils.construct_restore_args(nested)
  args = ocp.args.PyTreeRestore(
    item=nested, restore_args=restore_args, partial_restore=True
  )
  return reader.restore(folder / "state", args=args)[part]


def is_checkpoint(path) -> bool:
  """Returns whether a folder is a workdir with checkpoints, their folder, or a step."""
  path = epath.Path(path)
  if not path.is_dir():
    return False
  found = (path / "state", path / "checkpoints", *path.glob("step_*"))
  return any(p.is_dir() for p in found)


def step_folder(where: str, asked_by: str = "config.init_from"):
  """Returns the folder of a step: itself, or the newest in a workdir.

  Args:
    where: a workdir, its checkpoints folder, or one step's folder.
    asked_by: the key or flag that names it, for the error message.

  Raises:
    FileNotFoundError: no checkpoint there.
  """
  path = epath.Path(where).absolute()
  if (path / "state").exists():
    return path
  if (path / "checkpoints").exists():
    path = path / "checkpoints"
  steps = steps_in(path)
  if not steps:
    raise FileNotFoundError(
      f"{asked_by}: no checkpoint in {path}; expected the --workdir of a run, "
      "its checkpoints folder or the folder of one step"
    )
  return steps[max(steps)]


def steps_in(folder) -> dict[int, Any]:
  """Returns step -> folder of the finished steps in a checkpoints folder."""
  found = epath.Path(folder).glob("step_*")
  return {int(p.name[5:]): p for p in found if p.name[5:].isdigit()}


def _only(arrays: Mapping[str, Any], only: Sequence[str]) -> dict[str, Any]:
  """Returns the entries in whose path one of the regexes is found; all for ()."""
  return {
    k: v for k, v in arrays.items() if not only or any(re.search(r, k) for r in only)
  }
