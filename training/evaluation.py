"""The evaluators of a config, on their schedules."""

import dataclasses
import time
from typing import Any

from evaluators import context as context_lib
from model import catalogue
from training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Scheduled:
  """One entry of `config.evaluators`: (file, every n steps, options); 0: at the end.

  Attributes:
    name: what its metrics start with: options.name, else the file's name.
    every: steps between two runs.
    evaluator: the Evaluator itself.
  """

  name: str
  every: int
  evaluator: Any

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
  for file, every, options in setup.config.evaluators:
    cls = catalogue.find("evaluators", file, "Evaluator")
    options = {"name": file, **options}
    name = options["name"]
    where = f"config.evaluators: {name}"
    evaluator = catalogue.build(cls, {"context": context, **options}, where)
    out.append(Scheduled(name, every, evaluator))
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
