"""Several heads with a temperature for each pair: AMCL (arXiv 2310.05615).

The embedding is cut into heads m of d/M, each of unit norm;  s_ij^m = z_ai^m . z_bj^m
t_ij^m = low + (high - low) sigmoid(slope_m s_ij^m + offset_m)
L = 1/2 (mean_i + mean_j) of [lse(l_ij) - l_ii],  l_ij = sum_m s_ij^m / t_ij^m
  + beta mean_m,ij [(d/M)/2 log t_ij^m + 1 / t_ij^m]

Slope and offset are learned, for positives and for negatives apart, so that a positive
that cannot be near may be forgiven. The regulariser, of the likelihood, keeps t from
its bounds; its mean is taken over positives and over negatives, then over both.

The paper's t comes from a small network of the pair's features; here from their
similarity, which needs no size of its own. A projection of d to d is M linear heads.
Scores are not one inner product: this loss holds [M, b, b], and has no strategies.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from model.losses import pairs as pairing
from model.types import Array, Batch, Metrics, Params

COMBINE = ("product", "sum")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """AMCL, both directions, over the global batch.

  Attributes:
    pairs: of modalities; the loss is the mean over pairs. They share the heads'
      temperatures.
    heads: M; must divide the embedding's size.
    temperature: of every pair at the start. One softmax over the sum of M heads at t
      is as sharp as over their mean at t / M: 0.4 of four heads is the usual 0.1.
    low: lower bound of the temperatures; the paper's is 1e-5.
    high: upper bound of the temperatures.
    adaptive: whether the temperatures are learned; else all stay at the start.
    combine: heads within one softmax ("product" of their posteriors, as above), or the
      mean of their losses ("sum").
    beta: weight of the regulariser.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  heads: int = 4
  temperature: float = 0.4
  low: float = 0.01
  high: float = 2.0
  adaptive: bool = True
  combine: str = "product"
  beta: float = 0.1

  def __post_init__(self):
    pairing.check(self.pairs)
    if not 0 < self.low < self.temperature < self.high:
      raise ValueError(
        f"low = {self.low}, temperature = {self.temperature} and high = {self.high} "
        "must rise from above 0"
      )
    if self.heads < 1 or self.combine not in COMBINE or self.beta < 0:
      raise ValueError(
        f"heads = {self.heads} must be at least 1, beta = {self.beta} at least 0, "
        f"combine = {self.combine!r} one of {COMBINE}"
      )

  def init(self, key: Array) -> Params:
    """Returns {"slope": f32[2, m], "offset": f32[2, m]}: positives, negatives."""
    del key
    if not self.adaptive:
      return {}
    share = (self.temperature - self.low) / (self.high - self.low)
    start = jnp.full((2, self.heads), math.log(share / (1 - share)), jnp.float32)
    return {"slope": jnp.zeros_like(start), "offset": start}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]} -> (f32[], metrics); mean over valid rows.

    Raises:
      ValueError: d is not a multiple of heads.
    """
    metrics: Metrics = {}
    terms = []
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      x, y = self._split(z[a]), self._split(z[b])
      # f32 on purpose: see model.losses.reductions.dot.
      s = jnp.einsum("bmd,cmd->mbc", x, y, precision=jax.lax.Precision.HIGHEST)
      own = jnp.eye(s.shape[1], dtype=bool)[None]
      t = self._temperatures(params, s, own)
      logits = s / t
      if self.combine == "product":
        logits = jnp.sum(logits, axis=0, keepdims=True)
      term = (self._rows(logits, valid) + self._rows(logits.mT, valid)) / 2
      near, far, penalty = self._penalty(t, own, valid, x.shape[-1])
      terms.append(term + self.beta * penalty)
      metrics |= {
        f"amcl/{a}_{b}": term,
        f"amcl/penalty_{a}_{b}": penalty,
        f"amcl/temperature_positive_{a}_{b}": near,
        f"amcl/temperature_negative_{a}_{b}": far,
      }
    return jnp.mean(jnp.stack(terms)), metrics

  def _split(self, x: Array) -> Array:
    """Returns f32[b, m, d / m], each head of unit norm."""
    b, d = x.shape
    if d % self.heads:
      raise ValueError(
        f"the embedding's {d} dimensions cannot be split over heads = {self.heads} "
        f"({d} % {self.heads} = {d % self.heads}). Set the heads of amcl in "
        "config.objective.options.losses, or"
        " config.model.embed_dim"
      )
    x = x.astype(jnp.float32).reshape(b, self.heads, d // self.heads)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))

  def _temperatures(self, params: Params, s: Array, own: Array) -> Array:
    """Returns f32[m, b, b]."""
    if not self.adaptive:
      return jnp.full_like(s, self.temperature)
    slope, offset = (params[k][:, :, None, None] for k in ("slope", "offset"))
    pair = slope * s[None] + offset
    share = jax.nn.sigmoid(jnp.where(own, pair[0], pair[1]))
    return self.low + (self.high - self.low) * share

  def _rows(self, logits: Array, valid: Array) -> Array:
    """Returns f32[]: InfoNCE of logits [m, b, b], the mean over m."""
    kept = jnp.where(valid[None, None, :] | ~jnp.any(valid), logits, -jnp.inf)
    lse = jax.nn.logsumexp(kept, axis=-1)
    each = lse - jnp.diagonal(logits, axis1=1, axis2=2)
    return pairing.masked_mean(jnp.mean(each, axis=0), valid)

  def _penalty(self, t, own, valid, d) -> tuple[Array, Array, Array]:
    """Returns the mean temperatures of positives, of negatives, and the regulariser."""
    both = valid[:, None] & valid[None, :]
    each = d / 2 * jnp.log(t) + 1 / t

    def mean(x, pairs):
      # Of row means, as all valid rows have as many pairs: one f32 sum over b^2 of
      # them would lose digits, and how many would depend on the devices.
      total = jnp.sum(jnp.where(pairs, jnp.mean(x, axis=0), 0.0), axis=1)
      count = jnp.sum(pairs.astype(jnp.float32), axis=1)
      return pairing.masked_mean(total / jnp.maximum(count, 1.0), valid)

    near, far = both & own[0], both & ~own[0]
    penalty = (mean(each, near) + mean(each, far)) / 2
    return mean(t, near), mean(t, far), penalty
