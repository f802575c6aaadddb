"""The blocks of a trunk: unrolled or scanned, kept or recomputed for the gradient."""

from collections.abc import Callable
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from model import catalogue
from model.layers.block import Block, Masks, Streams, TrunkConfig
from model.layers.norm import Norm
from model.moe.config import MoeConfig
from model.moe.layer import MoeMlp
from model.types import Array, Metrics

SCANNED = "blocks"  # holds the parameters of a scan, with a leading axis of layers
REMAT = ("none", "dots", "full")


def smallest_period(pattern: tuple) -> int:
  """Returns the least p that divides len(pattern) with pattern[i] == pattern[i % p]."""
  depth = len(pattern)
  for p in range(1, depth + 1):
    if depth % p == 0 and all(pattern[i] == pattern[i % p] for i in range(depth)):
      return p
  return depth


def rematerialised(remat: str, scan: bool) -> type[nn.Module]:
  """Returns `Block`, with what the backward pass recomputes.

  Args:
    remat: "none": keep all; "dots": keep the results of the weight matmuls, not the
      attention matrices; "full": keep only the input of each block.
    scan: whether it runs inside a scan, which needs no guard against CSE.

  Raises:
    ValueError: another name.
  """
  if remat not in REMAT:
    raise ValueError(
      f"config.model.remat = {remat!r}: {catalogue.near_misses(remat, list(REMAT))}"
    )
  if remat == "none":
    return Block
  policy = None
  if remat == "dots":
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return nn.remat(Block, policy=policy, prevent_cse=not scan)


class Period(nn.Module):
  """What one step of the scan applies: the shortest run of blocks that repeats.

  Attributes:
    block: makes block j of the period, given its index.
    length: blocks in a period.
  """

  block: Callable[[int], nn.Module]
  length: int

  @nn.compact
  def __call__(
    self, x: Streams, rates: Array | None, masks: Masks, routed: Array | None
  ) -> tuple[Streams, tuple[Metrics, ...]]:
    """rates: f32[length] of stochastic depth, or None; the rest as `Block`."""
    aux = []
    for j in range(self.length):
      x, more = self.block(j)(x, masks, routed, None if rates is None else rates[j])
      aux.append(more)
    return x, tuple(aux)


class Trunk(nn.Module):
  """Transformer blocks and the final norm, over one or several modalities.

  Attributes:
    config: of the trunk.
    moe: options of the sparse layers; None: dense.
    scan: scan over layers, for short compile times; else unrolled, faster on CPU.
    remat: "none" | "dots" | "full".
    dtype: of the matmuls and activations.

  Parameters: block_<ii>/... and norm/...; with scan, blocks/block_<jj>/... for the
  jj-th block of a period, with a leading axis (see `model.encoders.stacking`). Random
  numbers differ between the two; values without them do not.
  """

  config: TrunkConfig
  moe: MoeConfig | None = None
  scan: bool = False
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Streams, masks: Masks, routed: Array | None, train: bool = False
  ) -> tuple[Streams, dict[int, Metrics]]:
    """Applies all blocks.

    Args:
      x: modality -> dtype [b, n, w].
      masks: modality -> bool[b, n] or None.
      routed: bool[b, sum of n], in the alphabetical order of the modalities.
      train: see `Block`.

    Returns:
      modality -> [b, n, w] after the final norm; sparse block -> what it reports.
    """
    c = self.config
    layers = self.moe.blocks(c.depth) if self.moe else ()
    sparse = tuple(i in layers for i in range(c.depth))
    block_type = rematerialised(self.remat, self.scan)

    def block(i: int) -> nn.Module:
      moe = None
      if self.moe and sparse[i]:
        moe = functools.partial(MoeMlp, config=self.moe, mlp=c.mlp, dtype=self.dtype)
      rate = 0.0 if self.scan else c.drop_path_rate(i)
      return block_type(c, moe, rate, train, self.dtype, name=f"block_{i:02d}")

    if self.scan:
      x, aux = self._scan(block, smallest_period(sparse), x, masks, routed, train)
    else:
      aux = {}
      for i in range(c.depth):
        x, aux[i] = block(i)(x, masks, routed)
    norm = Norm(c.norm, dtype=self.dtype, name="norm")
    return {m: norm(y) for m, y in x.items()}, {i: a for i, a in aux.items() if a}

  def _scan(self, block, period, x, masks, routed, train):
    c = self.config
    steps = c.depth // period
    rates = None
    if train and c.drop_path:
      every = [c.drop_path_rate(i) for i in range(c.depth)]
      rates = jnp.asarray(every, jnp.float32).reshape(steps, period)
    scanned = nn.scan(
      Period,
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True, "dropout": True, "router": True},
      in_axes=(0, nn.broadcast, nn.broadcast),
      length=steps,
    )
    x, stacked = scanned(block, period, name=SCANNED)(x, rates, masks, routed)
    aux = {
      i: jax.tree.map(lambda a, i=i: a[i // period], stacked[i % period])
      for i in range(c.depth)
    }
    return x, aux
