"""How the sparse layers route a whole split: who goes where, and what is dropped."""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

import jax
import numpy as np

from evaluators import context as context_lib
from evaluators.context import Context
from evaluators.favourites import Favourites
from model.types import ROUTES, Batch, Params

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
    favourites: patches and words to keep of each expert; 0: none.
    min_count: how often an expert must have served a word to be said to like it.
  """

  context: Context
  _: dataclasses.KW_ONLY
  name: str = "routing"
  split: str = "test"
  batch_size: int = 0
  source: Mapping[str, Any] | None = None
  favourites: int = 12
  min_count: int = 5

  def run(self, params: Params) -> dict[str, float]:
    """Returns layer<ii>/<what>/<m>; saves loads and favourites for the report.

    They are means over batches, `dead_experts` and `router_logit_scale` too.

    Raises:
      ValueError: a model without sparse layers.
    """
    found = Favourites(self.context.config.model, self.favourites, self.min_count)
    start = 0

    def watch(batch: Batch, aux: Mapping[str, jax.Array]) -> None:
      nonlocal start
      take(found, batch, aux, start)
      start += len(batch["valid"])

    embedded = context_lib.embed(
      self.context,
      params,
      split=self.split,
      batch_size=self.batch_size,
      options=self.source,
      watch=watch if self.favourites else None,
    )
    scalars, arrays = collect(embedded.aux)
    if not scalars:
      raise ValueError(
        f"no {HEAD}* metrics in the towers' aux, which holds {sorted(embedded.aux)}: "
        "drop the routing evaluator from config.evaluators, or set "
        "config.model.moe.every"
      )
    context_lib.save(
      self.context,
      self.name,
      kind="routing",
      split=self.split,
      source=json.dumps(dict(self.source or {}), default=list),
      **arrays,
      **found.arrays(),
    )
    return scalars


def take(
  found: Favourites, batch: Batch, aux: Mapping[str, jax.Array], start: int
) -> None:
  """Adds a global batch to `found`; its fetches are collectives, in the same order.

  Args:
    found: is added to.
    batch: as encoded.
    aux: of the towers.
    start: examples before this batch, where it does not say their "index".
  """
  routes: dict[tuple[str, str], dict[str, np.ndarray]] = {}
  for key in sorted(k for k in aux if k.startswith(ROUTES)):
    layer, modality, what = key.removeprefix(ROUTES).split("/")
    value = context_lib.to_numpy(aux[key])
    routes.setdefault((layer, modality), {})[what] = value
  if not routes:
    return
  rows = {"valid": context_lib.to_numpy(batch["valid"]).astype(bool)}
  for name in sorted({m for _, m in routes if found.reads(m)}):
    wanted = [key for key in (name, f"{name}_mask") if key in batch]
    rows |= {key: context_lib.to_numpy(batch[key]) for key in wanted}
  index = start + np.arange(len(rows["valid"]))
  if "index" in batch:
    index = context_lib.to_numpy(batch["index"]).astype(np.int64)
  found.add(routes, rows, index)
