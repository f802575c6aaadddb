"""Orbax checkpoints of a run: state and data iterator together, best and latest."""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

from absl import logging
from etils import epath
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

SHOWN = 8  # differing parameters named in an error message


def flatten(tree: Any) -> dict[str, Any]:
  """Returns {"a/b/c": leaf} of a tree of dicts, tuples and dataclasses."""

  def name(path):
    keys = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(str(k) for k in keys)

  return {name(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def check_workdir(workdir: str) -> None:
  """Creates `workdir` and writes to it.

  Raises:
    PermissionError or OSError: it cannot be written; says which path and why.
  """
  path = epath.Path(workdir)
  probe = path / f".write_test_{os.getpid()}"
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe.write_text("")
    probe.unlink()
  except OSError as e:
    raise type(e)(
      f"workdir {workdir!r} is not writable ({e.strerror or e}). "
      "Give another --workdir or mend its permissions."
    ) from e


def differences(saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
  """Returns one line per leaf that a checkpoint and the model do not share.

  Args:
    saved: path -> something with a shape, as the checkpoint holds it.
    wanted: path -> something with a shape, as the config builds it.
  """
  lines = []
  for path in sorted({*saved, *wanted}):
    if path not in saved:
      lines.append(f"  {path}: {_shape(wanted[path])} in the model, not in the file")
    elif path not in wanted:
      lines.append(f"  {path}: {_shape(saved[path])} in the file, not in the model")
    elif _shape(saved[path]) != _shape(wanted[path]):
      lines.append(
        f"  {path}: {_shape(saved[path])} in the file, "
        f"{_shape(wanted[path])} in the model"
      )
  return lines


def _clear_interrupted(directory: epath.Path) -> None:
  """Removes what a killed save left behind: it is of no use to anybody.

  The manager's own cleanup_tmp_directories works in a thread that nothing public waits
  for: a run that a wrong setting ends at once would show that thread's traceback.
  """
  if directory.exists():
    for interrupted in ocp.path.step.all_temporary_paths(directory):
      interrupted.get().rmtree()


def _shape(leaf) -> tuple[int, ...]:
  return tuple(getattr(leaf, "shape", ()) or ())


def _fields(state) -> dict[str, Any]:
  """Returns field -> tree of a TrainState; an empty `frozen` is not part of a file.

  Orbax compares empty fields too, and files of before there was one have none.
  """
  fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  return {k: v for k, v in fields.items() if k != "frozen" or v}


class Checkpointer:
  """Saves and restores (state, data iterator) of one workdir, asynchronously.

  Keeps the latest `config.keep` steps and the one with the best `config.best` metric.
  """

  def __init__(self, workdir: str, config):
    self.directory = epath.Path(workdir).absolute() / "checkpoints"
    policies: list[Any] = [checkpoint_managers.LatestN(n=config.keep)]
    if config.best:
      policies.append(
        checkpoint_managers.BestN(
          get_metric_fn=lambda metrics: metrics[config.best],
          reverse=config.mode == "min",
          n=1,
          keep_checkpoints_without_metrics=False,
        )
      )
    self._best = config.best
    if jax.process_index() == 0:
      _clear_interrupted(self.directory)
    self._manager = ocp.CheckpointManager(
      self.directory,
      # Named here, a new process can read the metadata before it restores anything.
      item_handlers={
        "state": ocp.StandardCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
        step_prefix="step",
        step_format_fixed_length=8,
      ),
    )

  def latest_step(self) -> int | None:
    """Returns the newest complete step, or None."""
    return self._manager.latest_step()

  def path(self, step: int) -> str:
    """Returns the folder of a step."""
    return str(self.directory / f"step_{step:08d}")

  def save(self, step: int, state, data: Mapping[str, Any], metrics=None) -> None:
    """Starts saving; the arrays are copied before this returns.

    Args:
      step: steps taken.
      state: TrainState.
      data: the loader's state; JSON values.
      metrics: flat name -> float of this step's evaluation, or None.
    """
    if metrics is not None and self._best and self._best not in metrics:
      raise ValueError(
        f"config.checkpoint.best = {self._best!r} is not among the evaluators' "
        f"metrics: {', '.join(sorted(metrics))}"
      )
    self._manager.save(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardSave(_fields(state)), data=ocp.args.JsonSave(dict(data))
      ),
      metrics=dict(metrics) if metrics else None,
      force=True,
    )

  def restore(self, abstract_state, step: int | None = None):
    """Returns (state, data state) of a step; each array goes straight into its shards.

    Args:
      abstract_state: a TrainState of jax.ShapeDtypeStruct with shardings.
      step: which one; the latest by default.

    Raises:
      FileNotFoundError: there is no checkpoint.
      ValueError: the checkpoint is of another model; names what differs.
    """
    self.wait()
    step = self.latest_step() if step is None else step
    if step is None:
      raise FileNotFoundError(f"no checkpoint in {self.directory}")
    self._check(abstract_state, step)
    restored = self._manager.restore(
      step,
      args=ocp.args.Composite(
        state=ocp.args.StandardRestore(_fields(abstract_state)),
        data=ocp.args.JsonRestore(),
      ),
    )
    return abstract_state.replace(**restored.state), restored.data

  def _check(self, abstract_state, step: int) -> None:
    saved = self._manager.item_metadata(step).state
    if saved is None:
      return
    tree = getattr(saved, "tree", saved)
    lines = differences(flatten(tree), flatten(abstract_state))
    # The moments repeat the parameters' differences: show the parameters first.
    lines = [s for s in lines if "opt_state" not in s and " ema/" not in s] or lines
    if lines:
      more = f"\n  ... and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
      raise ValueError(
        f"the checkpoint {self.path(step)} is of another model or optimizer; "
        f"{len(lines)} arrays differ:\n" + "\n".join(lines[:SHOWN]) + more + "\n"
        "Use the config that made it, another --workdir, or config.init_from to take "
        "only the parameters that match."
      )

  def wait(self) -> None:
    """Blocks until the running save is complete."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the running save and frees the manager."""
    self._manager.close()


def init_from(path: str, params, shardings, asked_by: str = "config.init_from"):
  """Returns `params` with every array replaced that a checkpoint holds in equal shape.

  Args:
    path: a workdir, its checkpoints folder, or one step's folder.
    params: the tree to fill.
    shardings: its shardings.
    asked_by: the key that names it, for the error message.

  Returns:
    (params, report): the filled tree and lines saying what was kept from the start.

  Raises:
    FileNotFoundError: no checkpoint there.
    ValueError: not one array matches.
  """
  folder = step_folder(path, asked_by)
  with ocp.PyTreeCheckpointer() as reader:
    saved = _saved(reader, folder)
    wanted, placed = flatten(params), flatten(shardings)
    match = {k for k, v in wanted.items() if k in saved and _shape(saved[k]) == v.shape}
    if not match:
      lines = "\n".join(differences(saved, wanted)[:SHOWN])
      raise ValueError(
        f"{asked_by}: none of the {len(saved)} parameters in {folder} has the "
        f"path and shape of one of the model's {len(wanted)}, e.g.\n{lines}\n"
        "Set config.model as the config.json of that run has it."
      )
    item = {
      k: jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=placed[k])
      for k, v in wanted.items()
      if k in match
    }
    values = flatten(_read(reader, folder, item))
  report = differences(saved, wanted)
  for line in report:
    logging.info("%s: %s", asked_by, line.strip())
  leaves = {k: values.get(k, v) for k, v in wanted.items()}
  return jax.tree.unflatten(jax.tree.structure(params), list(leaves.values())), report


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
  steps = sorted(p for p in path.glob("step_*") if p.name[5:].isdigit())
  if not steps:
    raise FileNotFoundError(
      f"{asked_by}: no checkpoint in {path}; expected the --workdir of a run, "
      "its checkpoints folder or the folder of one step"
    )
  return steps[-1]


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


def save_config(workdir: str, config) -> None:
  """Writes config.json, from which tools rebuild the run."""
  text = config.to_json(indent=1, sort_keys=True)
  (epath.Path(workdir) / "config.json").write_text(text)
