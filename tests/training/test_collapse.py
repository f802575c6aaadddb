"""A router that starves a modality is named, with advice that suits the router."""

import numpy as np
import pytest

from configs import base
from training import collapse

LAYER = "metrics/moe/layer03"


def _below(values, **changes):
  moe = base.moe()
  moe.update(changes)
  values = {f"{LAYER}/{k}": np.float32(v) for k, v in values.items()}
  found = collapse.below(values, moe)
  return {k.removeprefix(f"{LAYER}/"): v for k, v in found.items()}


def test_floors_are_those_of_the_config():
  values = {"served/text": 0.6, "served/image": 0.6, "effective_experts/text": 1.4}
  (text,) = _below(values).values()
  assert text.startswith(f"{LAYER}/effective_experts/text = 1.40, below config.")
  assert "config.model.moe.warn.effective_experts.text = 1.5:" in text
  floors = {"served": {"image": 0.7}, "effective_experts": {"text": 1.3}}
  assert list(_below(values, warn=floors)) == ["served/image"]


def test_at_the_floor_nothing_is_said():
  assert _below({"served/text": 0.5, "effective_experts/image": 2.5}) == {}


def test_other_modalities_and_metrics_are_not_watched():
  assert _below({"served/audio": 0.0, "load/text": 0.0, "token_entropy/text": 0}) == {}


def test_a_modality_of_which_every_token_is_dropped_is_not_absent():
  gone = {"served/text": 0.0, "effective_experts/text": 1.0, "token_entropy/text": 0.0}
  assert _below(gone) == {}
  dropped = gone | {"token_entropy/text": 0.1}
  assert list(_below(dropped)) == ["served/text", "effective_experts/text"]


@pytest.mark.parametrize(
  ("router", "metric", "words", "never"),
  [
    ("token_choice", "served", ["capacity", "losses.load"], []),
    ("expert_choice", "served", ["capacity", "moe.k", "no expert"], ["losses"]),
    ("token_choice", "effective_experts", ["too few experts", "global_entropy"], []),
    ("expert_choice", "effective_experts", ["gates"], ["sends", "losses.load"]),
    ("soft", "effective_experts", ["slots"], ["sends", "capacity", "losses.load"]),
  ],
)
def test_advice_suits_the_router(router, metric, words, never):
  (text,) = _below({f"{metric}/text": 0.1}, router=router).values()
  assert all(word in text for word in words), text
  assert not any(word in text for word in never), text
