"""How the sparse layers route a whole split: who goes where, and what is dropped."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from evaluators import context as context_lib
from evaluators.context import Context
from model.types import Params

HEAD = "metrics/moe/"


def collect(aux: Mapping[str, np.ndarray]) -> tuple[dict[str, float], dict[str, Any]]:
  """Splits the towers' aux into scalars and expert-by-modality load matrices.

  Args:
    aux: the towers' aux; of it, metrics/moe/layer<ii>/<what>[/<modality>] is read.

  Returns:
    (scalars named layer<ii>/<what>[/<modality>] and, as mean over the layers,
    <what>[/<modality>]; arrays: "layers", "modalities" and f32[layer, modality, e]
    "load", the share of a modality's real tokens that each expert served).
  """
  own = {k.removeprefix(HEAD): np.asarray(v) for k, v in aux.items() if HEAD in k}
  scalars = {k: float(v) for k, v in sorted(own.items()) if v.ndim == 0}
  over_layers: dict[str, list[float]] = {}
  for key, value in scalars.items():
    over_layers.setdefault(key.partition("/")[2], []).append(value)
  scalars |= {key: float(np.mean(values)) for key, values in over_layers.items()}
  loads = {tuple(k.split("/load/")): v for k, v in own.items() if "/load/" in k}
  layers = sorted({layer for layer, _ in loads})
  modalities = sorted({m for _, m in loads})
  arrays: dict[str, Any] = {"layers": layers, "modalities": modalities}
  if loads:
    missing = np.full_like(next(iter(loads.values())), np.nan)
    arrays["load"] = np.stack(
      [np.stack([loads.get((i, m), missing) for m in modalities]) for i in layers]
    )
  return scalars, arrays


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Effective experts, token entropy and served tokens of each layer and modality.

  All modalities go through together, as in training, since they share the slots.

  Attributes:
    context: mesh, encode function and recipe.
    name: of the artifact.
    split: of config.data.source.
    batch_size: global; 0 is config.batch_size.
    source: changes to the source's options.
  """

  context: Context
  _: dataclasses.KW_ONLY
  name: str = "routing"
  split: str = "test"
  batch_size: int = 0
  source: Mapping[str, Any] | None = None

  def run(self, params: Params) -> dict[str, float]:
    """Returns layer<ii>/<what>/<m>; saves the load matrices for the report.

    Raises:
      ValueError: a model without sparse layers.
    """
    embedded = context_lib.embed(
      self.context,
      params,
      split=self.split,
      batch_size=self.batch_size,
      options=self.source,
    )
    scalars, arrays = collect(embedded.aux)
    if not scalars:
      raise ValueError(
        f"no {HEAD}* metrics in the towers' aux, which holds {sorted(embedded.aux)}: "
        "drop the routing evaluator from config.evaluators, or set "
        "config.model.moe.every"
      )
    context_lib.save(
      self.context, self.name, kind="routing", split=self.split, **arrays
    )
    return scalars
