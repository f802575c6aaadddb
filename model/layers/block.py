"""A pre-norm transformer block over one or several modalities.

Modalities share the weights but not the attention: each example of each modality
attends only within itself. A sparse MLP, where there is one, sees all of them at once.
"""

from collections.abc import Callable, Mapping
import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model.layers import constrain, stochastic
from model.layers.attention import IMPLEMENTATIONS, Attention
from model.layers.mlp import ACTIVATIONS, Mlp
from model.layers.norm import NORMS, Norm
from model.layers.packing import Packed
from model.types import Array, Metrics

Streams = Mapping[str, Array]  # modality -> tokens [b, n, w]
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

  Parameters: norm1, attention, norm2, and mlp or moe; scale1 and scale2, f32[w], with
  `layer_scale`.
  """

  config: TrunkConfig
  moe: Callable[..., nn.Module] | None = None
  rate: float = 0.0
  train: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
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
    c = self.config
    depth_rate = self.rate if rate is None else rate
    norm1 = Norm(c.norm, self.dtype, c.epsilon, name="norm1")
    attention = Attention(
      c.heads,
      causal=c.causal,
      dtype=self.dtype,
      implementation=c.attention,
      name="attention",
    )
    norm2 = Norm(c.norm, self.dtype, c.epsilon, name="norm2")
    before1, after1 = (_same, norm1) if c.norm_after else (norm1, _same)
    before2, after2 = (_same, norm2) if c.norm_after else (norm2, _same)
    scale1, scale2 = self._scale("scale1", x), self._scale("scale2", x)
    z = {m: _attend(attention, before1(y), masks[m]) for m, y in x.items()}
    x = {
      m: after1(y + self._drop(scale1(z[m]), depth_rate, masks[m]))
      for m, y in x.items()
    }
    z = {m: before2(y) for m, y in x.items()}
    aux: Metrics = {}
    if self.moe is None:
      mlp = Mlp(c.mlp, c.activation, dtype=self.dtype, name="mlp")
      z = {m: mlp(y) for m, y in z.items()}
    else:
      # Not the order of the dict: transformations rebuild dicts in sorted order.
      names = sorted(z)
      sizes = [z[m].shape[1] for m in names]
      joined, aux = self.moe(name="moe")(
        jnp.concatenate([z[m] for m in names], axis=1),
        routed,
        modality=tuple(zip(names, sizes)),
        train=self.train,
      )
      ends = np.cumsum(sizes)[:-1].tolist()
      z = dict(zip(names, jnp.split(joined, ends, axis=1)))
    return {
      m: constrain.batch(after2(y + self._drop(scale2(z[m]), depth_rate, masks[m])))
      for m, y in x.items()
    }, aux

  def _scale(self, name: str, x: Streams) -> Callable[[Array], Array]:
    """Returns what multiplies a branch by its learned vector, if there are any."""
    first = self.config.layer_scale
    if not first:
      return _same
    width = next(iter(x.values())).shape[-1]
    scale = self.param(name, nn.initializers.constant(first), (width,))
    return lambda y: y * scale.astype(y.dtype)[None, None]

  def _drop(self, y: Array, rate: float | Array, mask: Array | Packed | None) -> Array:
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


def _attend(attention: nn.Module, x: Array, mask: Array | Packed | None) -> Array:
  if isinstance(mask, Packed):
    return mask.part(attention(mask.join(x), segments=mask.segments()))
  return attention(x, mask)


def _same(y: Array) -> Array:
  return y
