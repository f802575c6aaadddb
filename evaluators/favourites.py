"""What each expert likes: the patches and the words that most often reach it.

Axis letters: b batch, n tokens, k choices, e experts, r kept per expert.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import numpy as np


@dataclasses.dataclass
class Patches:
  """The patches of each expert with the largest gates, one of an example at most.

  Attributes:
    gate: f32[e, r], the largest first; 0 where there are fewer than r.
    index: i64[e, r], of the example; -1 where there are fewer.
    position: i64[e, r], of the patch, row by row.
  """

  gate: np.ndarray
  index: np.ndarray
  position: np.ndarray

  @classmethod
  def none(cls, experts: int, keep: int) -> "Patches":
    """Returns r = keep empty places for each expert."""
    shape = experts, keep
    return cls(np.zeros(shape, np.float32), *(np.full(shape, -1) for _ in range(2)))

  def add(self, route: Mapping[str, np.ndarray], index: np.ndarray) -> None:
    """Takes a batch in.

    Args:
      route: "index" i32[b, n, k], "served" bool[b, n, k] and "gate" f32[b, n, k].
      index: i64[b], of the examples.
    """
    keep = self.gate.shape[1]
    for e in range(len(self.gate)):
      here = (route["index"] == e) & route["served"]
      gate = np.where(here, route["gate"], 0).max(axis=-1)  # [b, n]
      position = gate.argmax(axis=1)
      best = gate.max(axis=1)
      some = best > 0
      gates = np.concatenate([self.gate[e], best[some]])
      # Stable: ties come out the same on every machine.
      order = np.argsort(-gates, kind="stable")[:keep]
      self.gate[e] = gates[order]
      self.index[e] = np.concatenate([self.index[e], index[some]])[order]
      self.position[e] = np.concatenate([self.position[e], position[some]])[order]

  def arrays(self) -> dict[str, Any]:
    """Returns what the artifact keeps."""
    return dataclasses.asdict(self)


@dataclasses.dataclass
class Words:
  """How often each id reached each expert.

  Attributes:
    served: i64[e, vocab], tokens of an id that the expert served.
    seen: i64[vocab], all real tokens of an id.
  """

  served: np.ndarray
  seen: np.ndarray

  @classmethod
  def none(cls, experts: int, vocab: int) -> "Words":
    """Returns counts of nothing."""
    return cls(np.zeros((experts, vocab), np.int64), np.zeros(vocab, np.int64))

  def add(
    self, route: Mapping[str, np.ndarray], ids: np.ndarray, real: np.ndarray
  ) -> None:
    """Takes a batch in.

    Args:
      route: as of `Patches.add`.
      ids: i32[b, n].
      real: bool[b, n], without padding.
    """
    np.add.at(self.seen, ids[real], 1)
    served = route["served"] & real[..., None]
    every = np.broadcast_to(ids[..., None], served.shape)
    np.add.at(self.served, (route["index"][served], every[served]), 1)

  def arrays(self, keep: int, least: int) -> dict[str, np.ndarray]:
    """Returns each expert's words with the largest lift, then count.

    The lift is a word's share of the expert's tokens over its share of all tokens.

    Args:
      keep: words per expert, r.
      least: tokens of a word that the expert must have served.

    Returns:
      "id" i64[e, r], -1 where there are fewer; "count" i64[e, r]; "lift" f32[e, r].
    """
    share = self.served / np.maximum(self.served.sum(axis=1, keepdims=True), 1)
    base = self.seen / max(self.seen.sum(), 1)
    lift = np.where(self.served >= least, share / np.maximum(base, 1e-12), 0.0)
    order = np.lexsort((-self.served, -lift), axis=1)[:, :keep]
    lift, count = (np.take_along_axis(x, order, 1) for x in (lift, self.served))
    some = lift > 0
    return {
      "id": np.where(some, order, -1),
      "count": np.where(some, count, 0),
      "lift": lift.astype(np.float32),
    }


class Favourites:
  """Collects, from the batches of a split, what the experts of each layer like."""

  def __init__(self, model: Mapping[str, Any], keep: int, least: int):
    """Nothing yet.

    Args:
      model: `config.model`.
      keep: patches and words per expert.
      least: see `Words.arrays`.
    """
    self._model = model
    self._keep, self._least = keep, least
    self._found: dict[tuple[str, str], Patches | Words] = {}

  def reads(self, name: str) -> bool:
    """Returns whether the modality is made of ids, which `add` needs."""
    return self._model["modalities"][name].stem == "tokens"

  def add(
    self,
    routes: Mapping[tuple[str, str], Mapping[str, np.ndarray]],
    rows: Mapping[str, np.ndarray],
    index: np.ndarray,
  ) -> None:
    """Takes a batch in.

    Args:
      routes: (layer, modality) -> as of `Patches.add`, the class token included.
      rows: the token modalities' ids and masks, and "valid" bool[b].
      index: i64[b], of the examples.
    """
    experts = self._model["moe"]["experts"]
    for (layer, name), route in routes.items():
      m = self._model["modalities"][name]
      if self.reads(name):
        ids = rows[name][:, : rows[name].shape[1] - m.ngrams]
        mask = rows.get(f"{name}_mask", np.ones(ids.shape, bool))
        words = self._found.setdefault((layer, name), Words.none(experts, m.vocab))
        assert isinstance(words, Words)
        words.add(_last(route, ids.shape[1]), ids, mask & rows["valid"][:, None])
        continue
      none = Patches.none(experts, self._keep)
      patches = self._found.setdefault((layer, name), none)
      assert isinstance(patches, Patches)
      patches.add(_last(route, int(np.prod(grid(m)))), index)

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns `patches/<layer>/<m>/<what>` and `words/<layer>/<m>/<what>`."""
    out: dict[str, np.ndarray] = {}
    for (layer, name), found in self._found.items():
      if isinstance(found, Words):
        kind, arrays = "words", found.arrays(self._keep, self._least)
      else:
        kind, arrays = "patches", found.arrays()
      out |= {f"{kind}/{layer}/{name}/{what}": x for what, x in arrays.items()}
    return out


def grid(modality: Any) -> tuple[int, int]:
  """Returns the (rows, columns) of patches of an entry of config.model.modalities.

  The frames of a video lie below each other; patches of ids are a row each.
  """
  if modality.get("stem") == "token_patches":
    return modality["length"], 1
  *rows, columns = (s // p for s, p in zip(modality["size"], modality["patch"]))
  return math.prod(rows), columns


def _last(route: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
  return {what: x[:, -n:] for what, x in route.items()}  # "cls" comes first
