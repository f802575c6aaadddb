"""The blocks of a trunk: unrolled or scanned, kept or recomputed for the gradient."""

from collections.abc import Callable, Mapping
import functools
import types

from flax import linen as nn
import jax
from jax.extend.core.primitives import all_to_all_p
import jax.numpy as jnp

from model import catalogue
from model.layers.block import Block, Masks, Streams, TrunkConfig
from model.layers.fused import Sum
from model.layers.mlp import activation
from model.moe.config import MoeConfig
from model.moe.dispatch import PRODUCT
from model.moe.layer import MoeMlp
from model.types import Array, Metrics, Params

# Holds the parameters of a scan, with a leading axis of layers; see `scan_name`.
SCANNED = "blocks"
REMAT = ("none", "activations", "dots", "full")
MATMULS = ("attention", "mlp", "experts")  # modules that compute in the model's dtype
_DOTS = jax.checkpoint_policies.save_from_both_policies(
  jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  # Batched over the experts: no policy of shapes tells them from attention's products.
  jax.checkpoint_policies.save_only_these_names(PRODUCT),
)


def smallest_period(pattern: tuple) -> int:
  """Returns the least p that divides len(pattern) with pattern[i] == pattern[i % p]."""
  depth = len(pattern)
  for p in range(1, depth + 1):
    if depth % p == 0 and all(pattern[i] == pattern[i % p] for i in range(depth)):
      return p
  return depth


def scans(pattern: tuple) -> tuple[tuple[int, int, int], ...]:
  """Returns (first block, blocks in a period, periods) of one scan or of two.

  Two where that makes less to compile: sparse models often begin with dense blocks.
  """
  depth = len(pattern)
  periods = [
    (smallest_period(pattern[:cut]) if cut else 0, smallest_period(pattern[cut:]))
    for cut in range(depth)
  ]
  cut = min(range(depth), key=lambda i: sum(periods[i]))  # the first among equals: 0
  parts = ((0, periods[cut][0], cut), (cut, periods[cut][1], depth - cut))
  return tuple((first, p, length // p) for first, p, length in parts if length)


def scan_name(first: int) -> str:
  """Returns the name of the scan that starts with block `first`."""
  return f"{SCANNED}_{first:02d}" if first else SCANNED


def rematerialised(remat: str, scan: bool) -> type[nn.Module]:
  """Returns `Block`, with what the backward pass recomputes.

  Args:
    remat: "none": keep all; "activations": all but what the activations of MLPs
      compute on their way, which is the blocks' own affair; "dots": keep the results of
      the weight matmuls, the experts' included, not the attention matrices; "full":
      keep the input of each block. Both keep what the experts' exchanges bring.
    scan: whether it runs inside a scan, which needs no guard against CSE.

  Raises:
    ValueError: another name.
  """
  if remat not in REMAT:
    raise ValueError(
      f"config.model.remat = {remat!r}: {catalogue.near_misses(remat, list(REMAT))}"
    )
  if remat in ("none", "activations"):
    return Block
  kept = _DOTS if remat == "dots" else jax.checkpoint_policies.nothing_saveable

  def policy(primitive, *args, **params) -> bool:
    # The backward pass would have to wait for an exchange that it asks for again.
    return primitive is all_to_all_p or kept(primitive, *args, **params)

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
    example: tokens of an example with all modalities that share the trunk.
    scan: scan over layers, for short compile times; else unrolled, faster on CPU.
    remat: "none" | "activations" | "dots" | "full".
    dtype: of the matmuls and activations.

  Parameters: block_<ii>/... and, unless `norm_after`, norm/...; with scan,
  blocks/block_<jj>/... for the jj-th block of a period, with a leading axis (see
  `model.encoders.stacking`), and if the trunk begins with <ff> blocks of another kind,
  blocks_<ff>/block_<jj>/... for what follows them. Random numbers differ between the
  two; values without them do not.
  """

  config: TrunkConfig
  moe: MoeConfig | None = None
  example: int = 0
  scan: bool = False
  remat: str = "none"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self,
    x: Streams,
    masks: Masks,
    routed: Array | None,
    train: bool = False,
    at: Mapping[str, int | Array] = types.MappingProxyType({}),
  ) -> tuple[Streams, Streams, dict[int, Metrics]]:
    """Applies all blocks.

    Args:
      x: modality -> dtype [b, n, w].
      masks: modality -> bool[b, n], None or Packed; see `Block`.
      routed: bool[b, sum of n], in the alphabetical order of the modalities.
      train: see `Block`.
      at: modality -> the position, or int32[b], of the one token that is pooled.

    Returns:
      modality -> [b, n, w] after the final norm; of the modalities in `at` that token
      alone, [b, 1, w], or {} where the last block does not lend itself to it; sparse
      block -> what it reports. Whoever reads no more than the tokens of `at` does not
      pay for the others in the last block: unused, the compiler leaves them out.
    """
    c = self.config
    layers = self.moe.blocks(c.depth) if self.moe else ()
    sparse = tuple(i in layers for i in range(c.depth))
    block_type = rematerialised(self.remat, self.scan)
    recompute = self.remat == "activations"

    def block(i: int) -> nn.Module:
      moe = None
      if self.moe and sparse[i]:
        moe = functools.partial(
          MoeMlp,
          config=self.moe,
          mlp=c.mlp,
          dtype=self.dtype,
          activation=activation(c.activation, recompute),
          example=self.example,
        )
      rate = 0.0 if self.scan else c.drop_path_rate(i)
      name = f"block_{i:02d}"
      return block_type(c, moe, rate, train, self.dtype, recompute, name=name)

    read: Streams = {}
    if c.fused:
      x = {m: Sum(y) for m, y in x.items()}
    if self.scan:
      x, aux = self._scan(block, sparse, x, masks, routed, train)
    else:
      aux = {}
      noise = train and (c.dropout or c.drop_path)
      for i in range(c.depth):
        one = block(i)
        if i == c.depth - 1 and not (sparse[i] or noise):
          read = {m: one.read(x[m], masks[m], p) for m, p in at.items()}
        x, aux[i] = one(x, masks, routed)
    reports = {i: a for i, a in aux.items() if a}
    if c.norm_after:  # the last block's is the final one
      return dict(x), read, reports
    norm = c.norm_of(self.dtype, "norm")
    return _normed(norm, x), _normed(norm, read), reports

  def _scan(self, block, pattern, x, masks, routed, train):
    c = self.config
    aux = {}
    for first, period, steps in scans(pattern):
      layers = range(first, first + period * steps)
      rates = None
      if train and c.drop_path:
        every = [c.drop_path_rate(i) for i in layers]
        rates = jnp.asarray(every, jnp.float32).reshape(steps, period)
      scanned = nn.scan(
        Period,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True, "router": True},
        in_axes=(0, nn.broadcast, nn.broadcast),
        length=steps,
      )
      blocks = functools.partial(_shifted, block, first)
      name = scan_name(first)
      x, stacked = scanned(blocks, period, name=name)(x, rates, masks, routed)
      for n, i in enumerate(layers):
        step, j = divmod(n, period)
        aux[i] = jax.tree.map(lambda a, step=step: a[step], stacked[j])
    return x, aux


def _normed(norm: nn.Module, x: Streams) -> Streams:
  return {m: norm(y)[1] if isinstance(y, Sum) else norm(y) for m, y in x.items()}


def casting(dtype: jnp.dtype) -> type[nn.Module]:
  """Returns `Trunk`, casting the weights of its matmuls to their dtype at the door.

  Once for all modalities: were each to cast for itself, the gradients of a shared trunk
  would be summed over the devices once per modality, and only then added. It cannot
  initialise: what it would return is cast.
  """
  if dtype == jnp.float32:
    return Trunk

  def cast(variables: Params) -> Params:
    def one(path, x):
      names = {getattr(key, "key", None) for key in path}
      return x.astype(dtype) if names & set(MATMULS) else x

    return jax.tree_util.tree_map_with_path(one, variables)

  return nn.map_variables(Trunk, "params", trans_in_fn=cast)


def _shifted(block: Callable[[int], nn.Module], first: int, j: int) -> nn.Module:
  return block(first + j)
