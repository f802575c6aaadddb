"""The evaluators of a config, on their schedules, and what they evaluate offline.

A metric is called <evaluator>/<metric>. What it means is its evaluator's protocol, a
number that each class states: `version`, 1 where it states none. Names of version 1
are bare; whoever changes what a metric means raises the number, and the names become
<evaluator>_v2/<metric>: figures of two protocols cannot be taken for each other.
"""

from collections.abc import Mapping
import dataclasses
import time
from typing import Any

import orbax.checkpoint as ocp

from evaluators import context as context_lib
from model import catalogue
from model.types import Params
from sharding import mesh as mesh_lib
from training import checkpoint, integrity
from training import setup as setup_lib
from training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Scheduled:
  """One entry of `config.evaluators`: (file, every n steps, options); 0: at the end.

  Attributes:
    name: what its metrics start with: options.name, else the file's name, and the
      version of its protocol from 2 on.
    every: steps between two runs.
    evaluator: the Evaluator itself.
    file: of evaluators/.
  """

  name: str
  every: int
  evaluator: Any
  file: str = ""

  def due(self, step: int, total: int) -> bool:
    """Returns whether to run after `step`; always after the last one."""
    return step == total or (self.every > 0 and step % self.every == 0)

  def run(self, params, step: int) -> dict[str, float]:
    """Returns {"<name>/<metric>": value}.

    Raises:
      RuntimeError: whatever the evaluator raised, with its name and the step.
    """
    started = time.monotonic()
    try:
      results = self.evaluator.run(params)
    except Exception as e:
      raise RuntimeError(f"evaluator {self.name} at step {step}: {e}") from e
    results["seconds"] = time.monotonic() - started
    return {f"{self.name}/{k}": float(v) for k, v in results.items()}

  def protocol(self) -> dict[str, Any]:
    """Returns {"evaluator", "version", "options"}: all that its figures depend on."""
    fields = dataclasses.fields(self.evaluator)
    options = {f.name: getattr(self.evaluator, f.name) for f in fields}
    options = {k: v for k, v in options.items() if k != "context" and k[0] != "_"}
    version = getattr(self.evaluator, "version", 1)
    return {"evaluator": self.file, "version": version, "options": options}


def build(setup, workdir: str) -> list[Scheduled]:
  """Returns the evaluators of `setup.config.evaluators`.

  Raises:
    ValueError: an unknown evaluator, two of one name, or config.checkpoint.best of an
      evaluator that is not among them.
  """
  context = context_lib.Context(
    mesh=setup.mesh,
    encode=step_lib.eval_encode(setup.towers, setup.objective),
    config=setup.config,
    workdir=workdir,
  )
  out = []
  for entry in setup.config.evaluators:
    if isinstance(entry, str) or len(entry) != 3:
      raise ValueError(
        f"config.evaluators has {entry!r}, expected (file of evaluators/, a number of "
        "steps or 0 for the end alone, options), such as ('retrieval', 0, {})"
      )
    file, every, options = entry
    cls = catalogue.find("evaluators", file, "Evaluator")
    options = {"name": file, **options}
    name = options["name"]
    where = f"config.evaluators: {name}"
    evaluator = catalogue.build(cls, {"context": context, **options}, where)
    _check_batch(where, getattr(evaluator, "batch_size", 0), setup)
    version = getattr(cls, "version", 1)
    name = name if version == 1 else f"{name}_v{version}"
    out.append(Scheduled(name, every, evaluator, file))
  names = [s.name for s in out]
  if len(set(names)) != len(names):
    raise ValueError(f"config.evaluators: two of one name in {names}; set options.name")
  best = setup.config.checkpoint.best
  if best and best.partition("/")[0] not in names:
    raise ValueError(
      f"config.checkpoint.best = {best!r} is a metric of no evaluator "
      f"({catalogue.near_misses(best.partition('/')[0], names)}). Metrics are called "
      "<evaluator>/<metric>; '' keeps the latest checkpoints only."
    )
  return out


def _check_batch(where: str, size: int, setup) -> None:
  """Raises ValueError for a batch of an evaluator that the mesh or groups cannot take.

  That of the config, size = 0, is checked where training's is.
  """
  batch, group = size or setup.config.batch_size, setup_lib.routing_group(setup.config)
  try:
    mesh_lib.check_batch(batch, setup.mesh, group=group)
  except ValueError as e:
    # It speaks of config.batch_size, as training has no other.
    text = str(e).replace("config.batch_size", "batch_size")
    raise ValueError(f"{where}, batch_size = {size}: {text}") from e


def restore(where: str, setup, asked_by: str = "--checkpoint") -> tuple[Params, str]:
  """Returns the parameters that training would evaluate, and which: "ema" | "params".

  Those are the moving average where the checkpoint has one. Each array goes straight
  into its shards. Of the objective's own parameters, evaluation reads those of heads;
  others may be absent, as in a checkpoint that tools.convert wrote.

  Args:
    where: a workdir, its checkpoints folder, or one step's folder.
    setup: of the model and the mesh.
    asked_by: the flag that names it, for the error message.

  Raises:
    FileNotFoundError: no checkpoint there.
    ValueError: the checkpoint is damaged, or of another model; names what differs.
  """
  folder = checkpoint.step_folder(where, asked_by)
  integrity.check(folder, asked_by)
  wanted = checkpoint.flatten(setup.abstract_state().params)
  with ocp.PyTreeCheckpointer() as reader:
    tree = reader.metadata(folder / "state").item_metadata
    tree = getattr(tree, "tree", tree)
    which = "ema" if tree.get("ema") else "params"
    saved = checkpoint.flatten(tree[which])
    _check(saved, wanted, str(folder), asked_by)
    found = {k: v for k, v in wanted.items() if k in saved}
    item = {which: checkpoint.nest(found)}
    restore_args = ocp.checkpoint_utils.construct_restore_args(item)
    args = ocp.args.PyTreeRestore(
      item=item, restore_args=restore_args, partial_restore=True
    )
    return {"objective": {}} | reader.restore(folder / "state", args=args)[which], which


def _check(
  saved: Mapping[str, Any], wanted: Mapping[str, Any], folder: str, asked_by: str
) -> None:
  """Raises ValueError where the towers or heads of a file are not the model's."""
  read = ("towers/", "objective/heads/")
  saved, wanted = (
    {k: v for k, v in x.items() if k.startswith(read)} for x in (saved, wanted)
  )
  lines = checkpoint.differences(saved, wanted)
  if lines:
    more = len(lines) - checkpoint.SHOWN
    rest = f"\n  ... and {more} more" if more > 0 else ""
    raise ValueError(
      f"{asked_by}: {folder} is of another model; {len(lines)} arrays differ:\n"
      + "\n".join(lines[: checkpoint.SHOWN])
      + f"{rest}\nSet config.model as the config.json of that run has it"
    )
