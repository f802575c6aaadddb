"""Tells from a step's metrics that a router starves a modality, and what to do."""

from collections.abc import Mapping
import re
from typing import Any

from model.moe import config as configs

_WATCHED = re.compile(rf"(.*/)({'|'.join(configs.FLOORS)})/(\w+)")


def below(values: Mapping[str, Any], moe: Mapping[str, Any]) -> dict[str, str]:
  """Returns metric -> warning for each `served` or `effective_experts` below its floor.

  Args:
    values: a step's metrics; of them, `<layer>/<metric>/<modality>` is read.
    moe: `config.model.moe`; a modality without floor in its `warn` is not watched.

  Raises:
    ValueError: floors that are none; see `model.moe.config.floors`.
  """
  floors = dict(configs.floors(moe))
  out = {}
  for name, value in values.items():
    match = _WATCHED.fullmatch(name)
    if match is None:
      continue
    layer, metric, modality = match.groups()
    floor = floors.get(f"{metric}/{modality}")
    if floor is None or float(value) >= floor or _absent(values, layer, modality):
      continue
    out[name] = (
      f"{name} = {float(value):.2f}, below {configs.WHERE}.warn.{metric}.{modality} = "
      f"{floor:g}: {_advice(moe, metric, modality)}"
    )
  return out


def _absent(values: Mapping[str, Any], layer: str, modality: str) -> bool:
  # A modality that came by has some entropy, even where all its tokens are dropped.
  served = values.get(f"{layer}served/{modality}", 1.0)
  entropy = values.get(f"{layer}token_entropy/{modality}", 0.0)
  return float(served) == 0 and float(entropy) == 0


def _advice(moe: Mapping[str, Any], metric: str, modality: str) -> str:
  """Returns what the metric means with this router, and which settings help."""
  where, router = configs.WHERE, moe["router"]
  if metric == "served":
    if router == "expert_choice":
      return (
        f"no expert takes the rest of {modality}. Raise {where}.capacity or {where}.k."
      )
    return (
      f"the experts that {modality} chooses have no slots left. Raise "
      f"{where}.capacity, or balance the experts by {where}.losses.importance and "
      f"{where}.losses.load."
    )
  meaning = {
    "token_choice": f"the router sends {modality} to too few experts",
    "expert_choice": f"the gates of {modality} leave most experts without weight",
    "soft": f"{modality} is mixed from the slots of too few experts",
  }
  return (
    f"{meaning.get(router, 'too few experts work')}. Raise {where}.weight, or "
    f"{where}.losses.global_entropy.{modality} and {where}.min_experts.{modality}."
  )
