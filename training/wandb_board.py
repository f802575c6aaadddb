"""Weights & Biases, for those who ask for it by config.wandb; imported only then."""

from collections.abc import Mapping
import json
import tempfile
from typing import Any
import uuid

from etils import epath
import jax

FILE = "wandb_id.txt"  # in the workdir: a resumed run goes on with the same page


def check(config: Any) -> None:
  """Raises ModuleNotFoundError where config.wandb is set and wandb is not installed."""
  if config.wandb and jax.process_index() == 0:
    _library(config)


def start(config: Any, workdir: str) -> "Board | None":
  """Returns the board of a run; None where config.wandb is empty, or not process 0."""
  if not config.wandb or jax.process_index() != 0:
    return None
  return Board(config, workdir)


class Board:
  """One run's page in the project config.wandb.

  Entity, mode and key are wandb's own affair: WANDB_ENTITY, WANDB_MODE=offline, ...
  """

  def __init__(self, config: Any, workdir: str):
    path = epath.Path(workdir) / FILE
    if not path.exists():
      path.write_text(uuid.uuid4().hex[:12])
    self._run = _library(config).init(
      project=config.wandb,
      id=path.read_text().strip(),
      resume="allow",
      name=config.name,
      config=json.loads(config.to_json_best_effort()),
      dir=tempfile.gettempdir() if "://" in workdir else workdir,
    )
    # Not wandb's own step, which never goes back: a resumed run repeats some.
    self._run.define_metric("*", step_metric="step")

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Sends the scalars of a record; null, of what is not finite, is left out."""
    scalars = {k: v for k, v in values.items() if isinstance(v, bool | int | float)}
    self._run.log({"step": step, **scalars})

  def close(self) -> None:
    """Ends the page's run; it can be resumed."""
    self._run.finish()


def _library(config: Any) -> Any:
  try:
    import wandb
  except ModuleNotFoundError as e:
    raise ModuleNotFoundError(
      f"config.wandb = {config.wandb!r}, but wandb is not installed: "
      "pip install wandb, or leave config.wandb empty"
    ) from e
  return wandb
