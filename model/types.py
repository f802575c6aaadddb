"""The types that flow through Concord: config -> batch -> Encoded -> objective -> step.

Axis letters, used in every file: b batch, n tokens, d embedding, w width, e experts,
c capacity, g group, k top-k, h heads.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from flax import struct
import jax

Array = jax.Array
Params = Mapping[str, Any]  # a tree of arrays
State = Mapping[str, Any]  # an objective's own state: queues, banks; {} if none
Metrics = dict[str, Array]  # flat; scalars, or small arrays such as loads per expert

# "image" f32[b, h, w, 3] | "text" i32[b, n] | "audio" f32[b, t, f] ..., by the names of
# config.model.modalities: see docs/modalities.md.
# "<modality>_mask" bool; "<modality>_pack" i32[b, 2], where training packs it: each
# example's first slot in its group, and how many tokens it lost;
# "<modality>_valid" bool[b]; "valid" bool[b]; "id" i32[b]
Batch = Mapping[str, Array]
# What ends the keys of a batch by which towers read a modality.
PARTS = ("", "_mask", "_pack")

ROUTES = "routes/"  # begins what evaluation knows of each token; model.encoders.routes

MESH_AXES = ("data", "fsdp", "expert", "tensor")
BATCH_AXES = ("data", "fsdp", "expert")  # the mesh axes that split the global batch


@struct.dataclass
class Encoded:
  """One modality of a batch, as one tower sees it.

  Attributes:
    pooled: f32[b, d], projected to the shared space, NOT normalised.
    tokens: [b, n, w] before pooling, or None where nobody asked for them.
    mask: bool[b, n], True for a real token; None where tokens is None.
    log_var: f32[b, d], the log-variance of a Gaussian around `pooled`, of which the
      tokens are draws; None where nobody says how sure the tower is.
  """

  pooled: Array
  tokens: Array | None = None
  mask: Array | None = None
  log_var: Array | None = None


class Encode(Protocol):
  """What an objective is given to encode with, at parameters of three kinds.

  "online" ones are trained; "ema" is their moving average, "frozen" a copy of the first
  ones, both without gradient.
  """

  def __call__(self, batch: Batch, using: str = "online") -> Mapping[str, Encoded]:
    """Returns the embeddings of the modalities that the batch has."""

  def params(self, using: str = "online") -> Params:
    """Returns the objective's own parameters of that kind."""


@struct.dataclass
class ObjectiveOutput:
  """What an objective returns: the loss f32[], metrics to log, and its next state."""

  loss: Array
  metrics: Metrics
  state: State
