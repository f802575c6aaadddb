"""Orbax checkpoints of a run: state and data iterator together, best and latest."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import logging as std_logging
import math
import os
import traceback
from typing import Any

from absl import logging
from etils import epath
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from training import errors, integrity

# Part of this module's interface.
from training.parameters import init_from as init_from
from training.parameters import is_checkpoint as is_checkpoint
from training.parameters import read_params as read_params
from training.parameters import step_folder as step_folder
from training.parameters import steps_in as steps_in
from training.parameters import write_params as write_params
from training.trees import SHOWN as SHOWN
from training.trees import differences as differences
from training.trees import flatten as flatten
from training.trees import nest as nest


class SaveFailed(errors.Explained):
  """Checkpoints cannot be written; says why and what the newest one is."""


def check_workdir(workdir: str) -> None:
  """Creates `workdir` and writes to it.

  Raises:
    PermissionError or OSError: it cannot be written; says which path and why.
  """
  path = epath.Path(workdir)
  probe = path / f".write_test_{os.getpid()}"
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe.write_bytes(bytes(1 << 16))  # a full disk has room for empty files
    probe.unlink()
  except OSError as e:
    raise type(e)(
      f"workdir {workdir!r} is not writable ({e.strerror or e}). "
      "Give another --workdir or mend its permissions."
    ) from e


def _clear_interrupted(directory: epath.Path) -> None:
  """Removes what a killed save left behind: it is of no use to anybody.

  The manager's own cleanup_tmp_directories works in a thread that nothing public waits
  for: a run that a wrong setting ends at once would show that thread's traceback.
  """
  if directory.exists():
    for interrupted in ocp.path.step.all_temporary_paths(directory):
      interrupted.get().rmtree()


def _fields(state) -> dict[str, Any]:
  """Returns field -> tree of a TrainState; an empty `frozen` is not part of a file.

  Orbax compares empty fields too, and files of before there was one have none.
  """
  fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  return {k: v for k, v in fields.items() if k != "frozen" or v}


class Checkpointer:
  """Saves and restores (state, data iterator) of one workdir, asynchronously.

  Keeps the latest `config.keep` steps, the one with the best `config.best` metric, and
  every multiple of `config.keep_every` for good. Files are digested when saved and
  checked when resumed from: a damaged step is set aside for the one before it. A save
  that fails is told of and tried again at the next step that is due.
  """

  def __init__(
    self, workdir: str, config, say: Callable[[str], None] = logging.warning
  ):
    """Finds the newest whole step, and removes what interrupted saves left.

    Args:
      workdir: of the run.
      config: config.checkpoint.
      say: what tells the user.

    Raises:
      ValueError: settings that do not fit each other, or only damaged steps.
    """
    self.directory = epath.Path(workdir).absolute() / "checkpoints"
    self._config, self._say = config, say
    self._saving: int | None = None  # the step whose save was not yet seen to end
    self._failures = 0  # saves in a row
    self._remains = False  # of failed saves, whose threads may write once more
    self._policy = _preservation(config)
    for name in ("absl", "asyncio"):
      std_logging.getLogger(name).addFilter(_is_ours)
    if jax.process_index() == 0:
      _clear_interrupted(self.directory)
    integrity.set_aside(steps_in(self.directory), say)
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    best, written = self._config.best, self._config.digests
    # Without best_fn the metrics would not be written, for the next process to know.
    tracked = dict(best_fn=_metric(self._config), best_mode=self._config.mode)
    return ocp.CheckpointManager(
      self.directory,
      # Named here, a new process can read the metadata before it restores anything.
      item_handlers={
        "state": ocp.StandardCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._policy,
        step_prefix="step",
        step_format_fixed_length=8,
        async_options=ocp.AsyncOptions(
          post_finalization_callback=self._write_digests if written else None
        ),
        **tracked if best else {},
      ),
    )

  def _write_digests(self) -> None:
    """Called by Orbax on host 0, when all is written and before it is moved."""
    for temporary in ocp.path.step.all_temporary_paths(self.directory):
      if self._saving is not None and temporary.get_final().name == self._name():
        integrity.write(temporary.get())
        return
    raise RuntimeError(
      f"no unfinished {self._name()} in {self.directory} to make digests of: do "
      "without, by config.checkpoint.digests = False"
    )

  def _name(self) -> str:
    return f"step_{self._saving or 0:08d}"

  def latest_step(self) -> int | None:
    """Returns the newest step, or None."""
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

    Raises:
      SaveFailed: more saves in a row failed than `config.retries`.
      ValueError: `config.best` is not among the metrics; the step is saved.
    """
    best, known = self._config.best, metrics
    lacking = metrics is not None and best and best not in metrics
    if lacking:
      metrics = None
    self._settle()
    self._saving = step
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(_fields(state)),
          data=ocp.args.JsonSave(dict(data)),
        ),
        metrics=dict(metrics or {}) if best else None,
        custom_metadata=integrity.MARK if self._config.digests else None,
        force=True,
      )
    except Exception as e:  # whatever it is, the parameters in memory are good
      self._failed(e)
    if lacking:
      self.wait()
      raise ValueError(
        f"config.checkpoint.best = {best!r} is not among the evaluators' "
        f"metrics: {', '.join(sorted(known or {}))}"
      )

  def look(self) -> None:
    """Tells of a save that failed meanwhile; returns at once.

    Raises:
      SaveFailed: as in `save`.
    """
    # Several hosts look when they save, all at the same step.
    alone = jax.process_count() == 1
    if alone and self._saving is not None and not self._manager.is_saving_in_progress():
      self._settle()

  def _settle(self) -> None:
    """Waits for the running save and learns how it ended."""
    if self._saving is None:
      return
    try:
      self._manager.wait_until_finished()
    except Exception as e:
      self._failed(e)
    else:
      self._saving, self._failures = None, 0

  def _failed(self, error: Exception) -> None:
    step, self._saving = self._saving, None
    self._failures += 1
    self._remains = True
    with contextlib.suppress(Exception):  # the same error, perhaps
      self._manager.close()
    if jax.process_index() == 0:
      # The next attempt needs the room. Where a thread of the failed save still writes,
      # the rest goes when the run ends.
      with contextlib.suppress(OSError):
        _clear_interrupted(self.directory)
    # A new manager: the old one keeps the error, and has forgotten the steps that it
    # was to delete.
    self._manager = self._open()
    text = f"the checkpoint of step {step} was not saved: {_reason(error)}.\n"
    if self._failures > self._config.retries:
      raise SaveFailed(text + self._way_out()) from error
    self._say(
      f"{text}Training goes on, and the next save tries again; {self._config.retries} "
      f"may fail in a row (config.checkpoint.retries). {self._newest()}"
    )

  def _newest(self) -> str:
    last = self.latest_step()
    return f"The newest checkpoint: {'none' if last is None else self.path(last)}."

  def _way_out(self) -> str:
    return (
      f"{self._newest()} Make room or mend the disk, then run the same command again: "
      "it resumes from there. Beside a checkpoint that is being written there are "
      f"config.checkpoint.keep = {self._config.keep} older ones."
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
    self._settle()
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
    """Blocks until the running save is complete.

    Raises:
      SaveFailed: it, or the one before it, failed: nothing follows that tries again.
    """
    self._settle()
    if self._failures:
      raise SaveFailed(f"the last checkpoint was not saved. {self._way_out()}")

  def close(self) -> None:
    """Waits for the running save and frees the manager."""
    try:
      self._settle()
    except SaveFailed as e:  # what ends the run is not to be hidden by this
      self._say(str(e))
    with contextlib.suppress(Exception):  # told of already
      self._manager.close()
    if self._remains and jax.process_index() == 0:
      _clear_interrupted(self.directory)


def _reason(error: Exception) -> str:
  """Returns an error's first line without the middle of a long one."""
  line = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
  line = line.partition(" [source locations=")[0]
  return line if len(line) < 300 else f"{line[:80]} ... {line[-200:]}"


def _is_ours(record: std_logging.LogRecord) -> bool:
  """Drops the tracebacks that Orbax's threads print of an error which it raises too."""
  trace = record.exc_info[2] if record.exc_info else None
  frames = traceback.extract_tb(trace)
  return not any("/orbax/" in frame.filename for frame in frames)


def _preservation(config) -> checkpoint_managers.PreservationPolicy:
  """Returns what is kept.

  Raises:
    ValueError: settings of config.checkpoint that do not fit each other.
  """
  keep, each, every = config.keep, config.keep_every, config.every
  if keep < 1:
    raise ValueError(
      f"config.checkpoint.keep = {keep} would delete every checkpoint: at least 1"
    )
  policies: list[Any] = [checkpoint_managers.LatestN(n=keep)]
  if each:
    if not every or each % every:
      raise ValueError(
        f"config.checkpoint.keep_every = {each} is not a multiple of "
        f"config.checkpoint.every = {every}: those steps are not saved"
      )
    policies.append(checkpoint_managers.EveryNSteps(each))
  if config.best:
    policies.append(
      checkpoint_managers.BestN(
        get_metric_fn=_metric(config),
        reverse=config.mode == "min",
        n=1,
        keep_checkpoints_without_metrics=False,
      )
    )
  return checkpoint_managers.AnyPreservationPolicy(policies)


def _metric(config) -> Callable[[Mapping[str, float]], float]:
  """Returns metrics -> how good a step is; one that was not evaluated is no good."""
  worst = math.inf if config.mode == "min" else -math.inf
  return lambda metrics: metrics.get(config.best, worst)


def save_config(workdir: str, config) -> None:
  """Writes config.json, from which tools rebuild the run."""
  path = epath.Path(workdir) / "config.json"
  new = path.parent / f"{path.name}.new"  # a full disk must not cost the old one
  new.write_text(config.to_json(indent=1, sort_keys=True))
  new.replace(path)
