"""The evaluators of a config, on their schedules."""

from collections.abc import Callable
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


def make_context(setup, workdir: str, encode: Callable | None = None):
  """Returns the evaluators' context of a setup."""
  return context_lib.Context(
    mesh=setup.mesh,
    encode=encode or step_lib.eval_encode(setup.towers),
    config=setup.config,
    workdir=workdir,
  )


def build(setup, workdir: str) -> list[Scheduled]:
  """Returns the evaluators of `setup.config.evaluators`.

  Raises:
    ValueError: an unknown evaluator, or two of one name.
  """
  context = make_context(setup, workdir)
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
  return out
