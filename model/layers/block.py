"""A pre-norm transformer block over one or several modalities.

Modalities share the weights but not the attention: each example of each modality
attends only within itself. A sparse MLP, where there is one, sees all of them at once.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model.layers import constrain, stochastic
from model.layers.attention import IMPLEMENTATIONS, Attention, pick
from model.layers.fused import AddNorm, Sum
from model.layers.mlp import ACTIVATIONS, Mlp
from model.layers.norm import NORMS, Norm
from model.layers.packing import Packed
from model.types import Array, Metrics

Streams = Mapping[str, Any]  # modality -> tokens [b, n, w], a Sum where `fused`
# modality -> bool[b, n]; None: all tokens are real; Packed: examples share rows
Masks = Mapping[str, Array | Packed | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrunkConfig:
  """The keys of `config.model.trunk`; see configs/base.py."""

  width: int = 384
  depth: int = 8
  heads: int = 6
  mlp: int = 1536
  dropout: float = 0.0
  drop_path: float = 0.0
  norm: str = "layernorm"
  epsilon: float = 1e-6
  norm_after: bool = False
  layer_scale: float = 0.0
  activation: str = "gelu_tanh"
  causal: bool = False
  attention: str = "xla"

  @property
  def on_gpu(self) -> bool:
    """Says where it runs, for what XLA's GPU backend wants written in another way."""
    return self.attention != "xla"

  @property
  def fused(self) -> bool:
    """Says whether sums and norms of the residual stream are `model.layers.fused`'s."""
    plain = self.norm == "layernorm" and not (self.norm_after or self.layer_scale)
    return self.attention == "triton" and plain and not (self.dropout or self.drop_path)

  def norm_of(self, dtype: jnp.dtype, name: str | None = None) -> nn.Module:
    """Returns the norm of a branch, or around all of them: an `AddNorm` if `fused`."""
    if self.fused:
      return AddNorm(self.epsilon, name=name)
    return Norm(self.norm, dtype, self.epsilon, self.on_gpu, name=name)

  def __post_init__(self):
    where = "config.model.trunk"
    for key in ("width", "depth", "heads", "mlp"):
      if getattr(self, key) < 1:
        raise ValueError(f"{where}.{key} = {getattr(self, key)}, expected at least 1")
    if self.width % self.heads:
      raise ValueError(
        f"{where}.width = {self.width} is not divisible by {where}.heads = "
        f"{self.heads} ({self.width} % {self.heads} = {self.width % self.heads})"
      )
    for key in ("dropout", "drop_path"):
      if not 0 <= getattr(self, key) < 1:
        raise ValueError(
          f"{where}.{key} = {getattr(self, key)}, expected 0 or more and below 1"
        )
    if self.layer_scale < 0:
      raise ValueError(
        f"{where}.layer_scale = {self.layer_scale}, expected above 0, or 0 for none"
      )
    if self.epsilon <= 0:
      raise ValueError(f"{where}.epsilon = {self.epsilon}, expected above 0")
    for key, known in (
      ("norm", NORMS),
      ("activation", tuple(ACTIVATIONS)),
      ("attention", IMPLEMENTATIONS),
    ):
      if getattr(self, key) not in known:
        raise ValueError(
          f"{where}.{key} = {getattr(self, key)!r}, expected one of {known}"
        )

  def drop_path_rate(self, layer: int) -> float:
    """Returns the stochastic depth rate of a block: linear, from 0 at the first."""
    return self.drop_path * layer / max(self.depth - 1, 1)


class Block(nn.Module):
  """Attention and MLP, each on its normalised input and added to it (arXiv 2002.04745).

  With `norm_after` the sums are normalised instead (arXiv 1810.04805).
  With `layer_scale` each is multiplied by a learned vector first (arXiv 2103.17239).

  Attributes:
    config: of the trunk.
    moe: makes the sparse MLP, given its `name`; None: a dense one.
    rate: stochastic depth rate of this block.
    train: dropout, drop path, routing noise and training capacity, or none of them.
    dtype: of the matmuls and activations.
    recompute: the activation of the dense MLP in the backward pass; see `Mlp`.

  Parameters: norm1, attention, norm2, and mlp or moe; scale1 and scale2, f32[w], with
  `layer_scale`.
  """

  config: TrunkConfig
  moe: Callable[..., nn.Module] | None = None
  rate: float = 0.0
  train: bool = False
  dtype: jnp.dtype = jnp.float32
  recompute: bool = False

  def setup(self):
    """Makes the parts."""
    c = self.config
    self.norm1 = c.norm_of(self.dtype)
    self.norm2 = c.norm_of(self.dtype)
    self.attention = Attention(
      c.heads, c.causal, self.dtype, implementation=c.attention, leave=c.fused
    )
    if self.moe is None:
      triton = c.attention == "triton"
      self.mlp = Mlp(c.mlp, c.activation, self.dtype, self.recompute, triton, c.fused)
    else:
      self.experts = self.moe(name="moe")
    if c.layer_scale:
      init = nn.initializers.constant(c.layer_scale)
      self.scale1 = self.param("scale1", init, (c.width,))
      self.scale2 = self.param("scale2", init, (c.width,))

  def __call__(
    self, x: Streams, masks: Masks, routed: Array | None, rate: Array | None = None
  ) -> tuple[Streams, Metrics]:
    """Applies the block.

    Args:
      x: modality -> dtype [b, n, w]; in the sparse MLP their tokens stand side by side
        in the alphabetical order of the names.
      masks: modality -> bool[b, n] or None, True for a token that may be attended to;
        or Packed, where each attends within its own example.
      routed: bool[b, sum of n], True for a token that a sparse MLP may route.
      rate: f32[], instead of the attribute, where a scan shares the code of its layers.

    Returns:
      modality -> [b, n, w], and what the sparse MLP reports ({} if dense).
    """
    depth_rate = self.rate if rate is None else rate
    drop = {m: functools.partial(self._drop, mask=masks[m], rate=depth_rate) for m in x}
    x, z = _unzipped({m: self._before(1, y) for m, y in x.items()})
    done = {m: _attend(self.attention, z[m], masks[m]) for m in z}
    x = {m: self._after(1, x[m], *done[m], drop[m]) for m in x}
    x, z = _unzipped({m: self._before(2, y) for m, y in x.items()})
    aux: Metrics = {}
    if self.moe is None:
      done = {m: self.mlp(z[m]) for m in z}
    else:
      # Not the order of the dict: transformations rebuild dicts in sorted order.
      names = sorted(z)
      sizes = [z[m].shape[1] for m in names]
      joined, aux = self.experts(
        jnp.concatenate([z[m] for m in names], axis=1),
        routed,
        modality=tuple(zip(names, sizes)),
        train=self.train,
      )
      ends = np.cumsum(sizes)[:-1].tolist()
      done = {m: (y, None) for m, y in zip(names, jnp.split(joined, ends, axis=1))}
    x = {m: self._after(2, x[m], *done[m], drop[m]) for m in x}
    return {m: _constrained(y) for m, y in x.items()}, aux

  def read(
    self, x: Array | Sum, mask: Array | Packed | None, at: int | Array
  ) -> Array | Sum:
    """Returns what `__call__` makes of one token of each example, and of no other.

    For the last block before a pooling that reads one token: the other ones are keys
    and values here, and nothing else. Dense and without dropout.

    Args:
      x: [b, n, w], of one modality.
      mask: as in `__call__`, not of packed groups.
      at: the token's position, or int32[b], one for each example.

    Returns:
      [b, 1, w].
    """
    real = mask.real if isinstance(mask, Packed) else mask
    y, z = self._before(1, x)
    x = self._after(1, pick(y, at), *self.attention(z, real, at=at))
    y, z = self._before(2, x)
    return _constrained(self._after(2, y, *self.mlp(z)))

  def _before(self, branch: int, x: Array | Sum) -> tuple[Array, Array]:
    """Returns the tokens, and what attention (1) or the MLP (2) is given of them."""
    norm = self.norm1 if branch == 1 else self.norm2
    if self.config.fused:
      return norm(x)
    y: Any = x
    return y, y if self.config.norm_after else norm(y)

  def _after(
    self,
    branch: int,
    y: Array,
    z: Array,
    bias: Array | None,
    drop: Callable[[Array], Array] | None = None,
  ) -> Array | Sum:
    """Returns y with the result z, and its last bias, of attention (1) or MLP (2)."""
    if self.config.fused:
      return Sum(y, z, bias)
    if self.config.layer_scale:
      scale = self.scale1 if branch == 1 else self.scale2
      z = z * scale.astype(z.dtype)[None, None]
    if self.config.on_gpu:
      # Else the product adds y to its result, for which y is copied first.
      z = jax.lax.optimization_barrier(z)
    y = y + (drop(z) if drop else z)
    norm = self.norm1 if branch == 1 else self.norm2
    return norm(y) if self.config.norm_after else y

  def _drop(self, y: Array, mask: Array | Packed | None, rate: float | Array) -> Array:
    if not self.train:
      return y
    if self.config.dropout:
      y = stochastic.dropout(y, self.config.dropout, self.make_rng("dropout"))
    if not (isinstance(rate, jax.Array) or rate):
      return y
    key = self.make_rng("dropout")
    if not isinstance(mask, Packed):
      return stochastic.drop_path(y, rate, key)
    kept = stochastic.drop_path(jnp.ones(y.shape[0], y.dtype), rate, key)
    return y * mask.of_example(kept)[..., None]


def _attend(
  attention: nn.Module, x: Array, mask: Array | Packed | None
) -> tuple[Array, Array | None]:
  if not isinstance(mask, Packed):
    return attention(x, mask)
  if mask.group == 1:
    return attention(x, lengths=mask.lengths())
  y, bias = attention(mask.join(x), segments=mask.segments())
  return mask.part(y), bias


def _constrained(y: Array | Sum) -> Array | Sum:
  if not isinstance(y, Sum):
    return constrain.batch(y)
  x, z = jax.tree.map(constrain.batch, (y.x, y.z))
  return Sum(x, z, y.bias)


def _unzipped(pairs: Mapping[str, tuple[Any, Any]]) -> tuple[dict, dict]:
  return {m: a for m, (a, _) in pairs.items()}, {m: b for m, (_, b) in pairs.items()}
