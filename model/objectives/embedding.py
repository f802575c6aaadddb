"""What evaluation sees of an objective's heads: those that are part of the embedding.

Of most heads, what is wanted later is what enters them (a projection, a classifier).
A head whose class says `embeds = True` makes the embedding itself (FDT, PCME). It takes
any of its names: an evaluator may encode one modality.
"""

from collections.abc import Mapping
from typing import Any

import jax

from model.objectives.parts import HEADS
from model.types import Encoded, Params


def embed(
  objective: Any, params: Params, encoded: Mapping[str, Encoded]
) -> dict[str, Encoded]:
  """Returns encoded with the heads of the objective on it that make the embedding.

  Args:
    objective: of model/objectives; one without heads changes nothing.
    params: its parameters.
    encoded: modality -> Encoded, of some or all modalities.
  """
  out = dict(encoded)
  heads = getattr(objective, "topped", None)
  for i, (names, head) in enumerate(heads.built if heads else ()):
    given = {name: out[name] for name in names if name in out}
    if given and getattr(head, "embeds", False):
      # Not training: nothing is drawn.
      out |= head(params[HEADS][str(i)], given, jax.random.key(0), False)
  return out
