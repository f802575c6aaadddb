"""Hard negatives by importance weights, debiased (arXiv 2010.04592).

L = 1/2 mean_i [log(exp(s_ii) + N_i) - s_ii] + the same of the columns
N_i = max(n (E_i - tau_plus exp(s_ii)) / (1 - tau_plus), n exp(-1 / t))
E_i = sum_{j != i} exp((1 + beta) s_ij) / sum_{j != i} exp(beta s_ij),  n negatives
s = z_a z_b^T / t

E_i is the mean of exp(s) over negatives drawn in proportion to exp(beta s); tau_plus
is the chance that one of them is a positive. Both 0: InfoNCE.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce
from model.losses import scale as scaling
from model.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """Both directions over the global batch; a row without negatives is left out.

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    temperature: at the start, or for good if not learned; divides cosine similarities.
    learned: whether the temperature is a parameter; the paper keeps it fixed.
    max_scale: upper bound of 1 / temperature.
    beta: how much harder than uniform the negatives are; at least 0.
    tau_plus: the prior of a false negative, in [0, 1).
    negatives: "rows": all other rows; "ids": those of another batch["id"].
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  temperature: float = 0.5
  learned: bool = False
  max_scale: float = 100.0
  beta: float = 1.0
  tau_plus: float = 0.1
  negatives: str = "rows"
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    pairing.check_negatives(self.negatives)
    scaling.check(self.temperature, self.max_scale)
    if not (self.beta >= 0 and 0 <= self.tau_plus < 1):
      raise ValueError(
        f"beta = {self.beta} must be at least 0, tau_plus = {self.tau_plus} in [0, 1)"
      )

  def init(self, key: Array) -> Params:
    """Returns {}, or {"log_scale": f32[]} if the temperature is learned."""
    del key
    return scaling.parameters(self.temperature, self.learned)

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows."""
    scale = scaling.inverse(params, self.temperature, self.max_scale)
    metrics = {"hard_negative/temperature": 1 / scale}
    how: dict[str, Any] = dict(strategy=self.strategy, tile=self.tile)
    terms = []
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      count = self._count(batch, valid)
      similarity = pairing.positive(z[a], z[b])
      exclude = pairing.no_negatives(batch, self.negatives)
      means = self._log_means(z[a], z[b], scale, valid, count, exclude, how)
      for x, y, mean in ((a, b, means[0]), (b, a, means[1])):
        counted = valid & (count > 0)
        mean = jnp.where(counted, mean, 0.0)
        each, floored = self._rows(scale * similarity, mean, count, scale, counted)
        term = pairing.masked_mean(each, counted)
        metrics[f"hard_negative/{x}_to_{y}"] = term
        share = pairing.masked_mean(floored.astype(jnp.float32), counted)
        metrics[f"hard_negative/floored_{x}_to_{y}"] = share
        terms.append(term)
      metrics[f"hard_negative/positive_{a}_{b}"] = pairing.masked_mean(
        similarity, valid
      )
    return jnp.mean(jnp.stack(terms)), metrics

  def _count(self, batch: Batch, valid: Array) -> Array:
    """Returns f32[b]: the number of negatives of each valid row."""
    total = jnp.sum(valid.astype(jnp.float32))
    if self.negatives == "rows":
      return jnp.full(valid.shape, jnp.maximum(total - 1, 0.0))
    how: dict[str, Any] = dict(strategy=self.strategy, tile=self.tile)
    return total - pairing.count_same(pairing.ids(batch), valid, **how)

  def _log_means(self, a, b, scale, valid, count, exclude, how):
    """Returns log E_i f32[b] of the rows and of the columns."""

    def total(beta):
      return reduce.symmetric_logsumexp(
        a, b, beta * scale, valid=valid, exclude=exclude, **how
      )

    hard = total(1 + self.beta)
    if self.beta == 0:
      some = jnp.log(jnp.maximum(count, 1.0))
      return hard[0] - some, hard[1] - some
    weight = total(self.beta)
    # -inf - -inf is nan: rows without negatives are left out by the caller.
    none = count <= 0
    return tuple(
      jnp.where(none, 0.0, h) - jnp.where(none, 0.0, w) for h, w in zip(hard, weight)
    )

  def _rows(self, positive, mean, count, scale, counted):
    """Returns (f32[b] the loss of each row, bool[b] whether N_i is at its floor)."""
    # All exponentials relative to the largest, which therefore cannot overflow.
    top = jax.lax.stop_gradient(jnp.maximum(positive, mean))
    own = jnp.exp(positive - top)
    debiased = (jnp.exp(mean - top) - self.tau_plus * own) / (1 - self.tau_plus)
    least = jnp.exp(-scale - top)
    total = own + count * jnp.maximum(debiased, least)
    # May be 0 in a row that is left out, of which the slope would be nan.
    total = jnp.where(counted, total, 1.0)
    floored = debiased < least if self.tau_plus else jnp.zeros_like(own, bool)
    return top + jnp.log(total) - positive, floored
