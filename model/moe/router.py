"""What all routers share: the routes that they return, the gate, slots and noise.

Axis letters: g group, s tokens of a group, e experts, c capacity (slots of one expert),
k choices per token. Everything here is f32 or int32.
"""

from fractions import Fraction
import math
from typing import ClassVar

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp

from model.moe.config import MoeConfig
from model.types import Array

MULTIPLE = 4  # capacities are rounded up to it: whole vector registers, few shapes


@struct.dataclass
class Routes:
  """Tokens choose k slots: two inverse maps between token choices and expert slots.

  Attributes:
    gate: f32[g, s, k], the weight of each choice in the output.
    slot: int32[g, s, k], expert * c + position; e * c for a choice that is not served.
    entry: int32[g, e, c], token * k + choice in each slot; s * k for an empty slot.
  """

  gate: Array
  slot: Array
  entry: Array


@struct.dataclass
class Chosen:
  """Tokens choose k experts, all of which serve them: no slots.

  Attributes:
    gate: f32[g, s, k], the weight of each choice in the output.
    expert: int32[g, s, k]; e for padding.
  """

  gate: Array
  expert: Array


@struct.dataclass
class Taken:
  """Slots choose tokens; a token may be in no slot, or in one of every expert.

  Attributes:
    gate: f32[g, e, c], the weight of each slot in its token's output.
    token: int32[g, e, c]; s for an empty slot.
  """

  gate: Array
  token: Array


@struct.dataclass
class Mixed:
  """Slots are mixtures of all tokens of a group, and outputs mixtures of all slots.

  Attributes:
    spread: f32[g, s, e, c], the weight of each token in each slot.
    combine: f32[g, s, e, c], the weight of each slot in each token's output.
  """

  spread: Array
  combine: Array


@struct.dataclass
class Routing:
  """What a router decided, for the dispatch, the losses and the metrics.

  Attributes:
    routes: where the dispatch is to move the tokens.
    logits: f32[g, s, e], clean; [g, s, e * c] of a router whose slots have their own.
    noisy: the same with the noise that was dispatched on.
    gates: f32[g, s, e], the softmax of the clean logits, over each expert's slots.
    load: f32[g, s, e], the part of each expert's work that the token caused: choices
      that were served; 0 for padding.
    served: f32[g, s], the part of the token's claims that was met.
    expert: int32[g, s, k], the chosen experts, served or not; -1 for padding. None
      where nothing is chosen.
  """

  routes: Routes | Chosen | Taken | Mixed
  logits: Array
  noisy: Array
  gates: Array
  load: Array
  served: Array
  expert: Array | None = None


class Gate(nn.Module):
  """A router, but for its decision: one logit per token and expert, in f32 always.

  A subclass `Router` defines `__call__(x [g, s, w], mask bool[g, s], *, train: bool,
  key: noise's key or None) -> Routing`, and may extend `check`.

  Attributes:
    config: of the sparse layer.
    mixes: whether what a token becomes depends on the other tokens of its group by more
      than a lack of slots. The layer then routes each modality by itself, lest an image
      see its own caption.
    example: tokens of an example with all modalities that share the layer; 0: those
      that come.

  Parameters (f32): kernel [w, e].
  """

  config: MoeConfig
  example: int = 0
  mixes: ClassVar[bool] = False

  @staticmethod
  def check(config: MoeConfig) -> None:
    """Raises a ValueError for options that this router cannot honour."""

  @staticmethod
  def active(config: MoeConfig) -> float:
    """Returns how many experts work on a token, in the mean."""
    return config.k

  @staticmethod
  def mlps(
    config: MoeConfig, tokens: int, example: int, factor: float | None = None
  ) -> float:
    """Returns the expert MLPs per token of an example, in the mean.

    Args:
      config: of the sparse layer.
      tokens: of one modality of an example.
      example: of all modalities that share the layer.
      factor: of the capacity, to count empty slots too; None: useful work only.
    """
    del tokens
    if factor is None or config.dispatch == "dropless":
      return config.k
    s = config.group * example
    return config.experts * capacity(s, config.k, factor, config.experts) / s

  @staticmethod
  def matmuls(config: MoeConfig) -> int:
    """Returns the multiplications of the router's matmuls over tokens * width * E."""
    del config
    return 1

  @nn.compact
  def logits(self, x: Array) -> Array:
    """Returns f32[..., e] of x [..., w]."""
    kernel = self.param(
      "kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.config.experts)
    )
    # HIGHEST, or accelerators round the inputs to bf16.
    return jnp.matmul(
      x.astype(jnp.float32), kernel, precision=jax.lax.Precision.HIGHEST
    )


def capacity(
  tokens: int,
  k: int,
  factor: float,
  experts: int,
  multiple: int = MULTIPLE,
  whole: int = 0,
) -> int:
  """Returns the slots of an expert: ceil(s * k * factor / e), up to a multiple of 4.

  It never exceeds the group's tokens s (rounded up likewise): a token chooses an expert
  at most once, so that further slots could not be filled.

  Args:
    tokens: of a group, s.
    k: choices of each.
    factor: of the capacity.
    experts: e.
    multiple: what is rounded up to.
    whole: tokens of a group that lacks nothing, if it has more: slots are for so many.
  """
  # Exact: 100 * 1.1 is above 110 in binary floating point, and would cost four slots.
  slots = math.ceil(max(tokens, whole) * k * Fraction(str(factor)) / experts)
  return -(-max(1, min(slots, tokens)) // multiple) * multiple


def noisy(logits: Array, key: Array, std: float) -> Array:
  """Adds normal noise of standard deviation `std` to each logit f32[..., e]."""
  return logits + std * jax.random.normal(key, logits.shape, logits.dtype)
