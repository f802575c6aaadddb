"""Late interaction of tokens: FILIP (arXiv 2111.07783).

s_ij = mean_k max_r a_ik . b_jr / t,  s'_ji = mean_r max_k b_jr . a_ik / t,
L = -1/2 mean_i log softmax_j(s_ij)_i - 1/2 mean_j log softmax_i(s'_ji)_j

a_ik and b_jr are the real tokens of an image and of a text, of unit norm: each looks
for one on the other side, and padding neither looks nor is found. The two scores of a
pair differ. They are made tile by tile, so that no more than [b, k, tile, r] is held,
and again for the gradient; the paper's pruning of tokens before the gather is not
needed for that, and is not done.
"""

from collections.abc import Mapping
import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce, sets
from model.losses import scale as scaling
from model.losses.sets import Tokens
from model.types import Array, Batch, Encoded, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """FILIP over the global batch, both directions.

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    widths: (modality, width of its tokens) each, to be projected to `projection`; ():
      tokens are compared as they are, and must be of one width.
    projection: d of the space in which projected tokens are compared.
    temperature: at the start, or for good if not learned; divides cosine similarities.
    learned: whether the temperature is a parameter, shared by all pairs.
    max_scale: upper bound of 1 / temperature.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  tokens: ClassVar[bool] = True

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  widths: tuple[tuple[str, int], ...] = ()
  projection: int = 256
  temperature: float = 0.07
  learned: bool = True
  max_scale: float = 100.0
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    if not 0 < 1 / self.max_scale <= self.temperature:
      raise ValueError(
        f"temperature = {self.temperature} must be at least 1 / max_scale = "
        f"{1 / self.max_scale}"
      )
    missing = {m for pair in self.pairs for m in pair} - {m for m, _ in self.widths}
    if self.widths and missing:
      raise ValueError(f"widths = {self.widths} must name {sorted(missing)} too")

  def init(self, key: Array) -> Params:
    """Returns {"log_scale": f32[]} if learned, and "project_<m>" [width, d] if any."""
    params = {}
    for i, (m, width) in enumerate(self.widths):
      x = jax.random.normal(jax.random.fold_in(key, i), (width, self.projection))
      params[f"project_{m}"] = x * width**-0.5
    if self.learned:
      params["log_scale"] = scaling.initial(1 / self.temperature)
    return params

  def __call__(
    self, params: Params, z: Mapping[str, Encoded], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: Encoded} with tokens -> (f32[], metrics); mean over valid rows.

    Raises:
      ValueError: a modality without tokens, or tokens of widths that do not fit.
    """
    scale: Array = jnp.float32(1 / self.temperature)
    if self.learned:
      scale = scaling.positive(params["log_scale"], self.max_scale)
    metrics = {"filip/temperature": 1 / scale}
    terms = []
    rows = {m: self.embed(params, m, z[m]) for pair in self.pairs for m in pair}
    for a, b in pairing.directions(self.pairs):
      valid = pairing.valid_rows(batch, rows[a].x.shape[0], a, b)
      lse = reduce.row_logsumexp(
        rows[a], rows[b], scale, valid=valid, strategy=self.strategy, tile=self.tile
      )
      own = sets.alone(rows[a], rows[b])
      term = pairing.masked_mean(lse - scale * own, valid)
      metrics[f"filip/{a}_to_{b}"] = term
      metrics[f"filip/positive_{a}_to_{b}"] = pairing.masked_mean(own, valid)
      terms.append(term)
    return jnp.mean(jnp.stack(terms)), metrics

  def embed(self, params: Params, modality: str, encoded: Encoded) -> Tokens:
    """Returns the tokens of a modality as they are compared: f32 [b, k, d], unit norm.

    Also for evaluation: late interaction of the two sides scores a pair, and its argmax
    says which word belongs to a patch.
    """
    x = encoded.tokens
    if x is None:
      raise ValueError(f"filip compares tokens; the tower gives none for {modality!r}")
    real = jnp.ones(x.shape[:2], bool) if encoded.mask is None else encoded.mask
    # Padding may hold anything: not even a nan is to get further, nor back.
    x = jnp.where(real[:, :, None], x.astype(jnp.float32), 0.0)
    kernel = params.get(f"project_{modality}")
    if kernel is not None:
      if kernel.shape[0] != x.shape[-1]:
        raise ValueError(
          f"widths of filip has {kernel.shape[0]} for {modality!r}, whose tokens are "
          f"{x.shape[-1]} wide (config.model.modalities.{modality})"
        )
      x = x @ kernel
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    unit = x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
    return Tokens(unit, real.astype(jnp.float32))
