"""Which experts each token of each modality went to, by layer."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax

from model.encoders.towers import Towers
from model.encoders.trunk import SCANNED
from model.types import ROUTES, Array, Encoded, Metrics

SOWN = {"index": "expert_index", "served": "expert_served", "gate": "expert_gate"}


def routes(
  towers: Towers, encoded: Mapping[str, Encoded], sown: Mapping[str, Any]
) -> Metrics:
  """Returns `routes/layer<ii>/<m>/<what>`; {} of a dense model or a router of mixtures.

  Args:
    towers: whose shared trunk sows its modalities joined in alphabetical order.
    encoded: with tokens, which say how many tokens each modality has.
    sown: the towers' "intermediates".

  Returns:
    what "index" int32[b, n, k], the chosen experts, -1 for none; "served" bool and
    "gate" f32 of the same shape. The token of "cls" pooling, if any, comes first.
  """
  if towers.moe is None:
    return {}
  out = {}
  groups = [sorted(encoded)] if towers.shared else [[m] for m in sorted(encoded)]
  for names in groups:
    trunk = "trunk" if towers.shared else f"trunk_{names[0]}"
    config = next(m.trunk for m in towers.modalities if m.name == names[0])
    layers = towers.moe.blocks(config.depth)
    for i, layer in zip(layers, _layers(sown.get(trunk, {}))):
      start = 0
      for m in names:
        tokens = encoded[m].tokens
        assert tokens is not None  # Towers gives them always
        part = slice(start, start + tokens.shape[1])
        for what, key in SOWN.items():
          out[f"{ROUTES}layer{i:02d}/{m}/{what}"] = layer[key][:, part]
        start = part.stop
  return out


def _layers(trunk: Mapping[str, Any]) -> Iterator[Mapping[str, Array]]:
  """Yields what each sparse block of a trunk has sown, in order, scanned or not."""
  # Of two scans, the first's name is the shorter; so is that of block_99 to block_100.
  for name in sorted(trunk, key=lambda name: (len(name), name)):
    if not name.startswith(SCANNED):
      yield _sown(trunk[name])
      continue
    period = [_sown(trunk[name][block]) for block in sorted(trunk[name])]
    for step in range(jax.tree.leaves(period)[0].shape[0]):
      for block in period:
        yield jax.tree.map(lambda x, step=step: x[step], block)


def _sown(block: Mapping[str, Any]) -> Mapping[str, Array]:
  return {key: values[0] for key, values in block["moe"].items()}
