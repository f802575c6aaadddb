"""Decoupled contrastive learning: DCL and DCLW (arXiv 2110.06848, eq. 6).

L = 1/2 mean_i [log sum_{j != i} exp(s_ij) - w_i s_ii] + the same of the columns,
s = z_a z_b^T / t;  w_i = 1, or in DCLW 2 - exp(c_i) / mean_k exp(c_k),
c_i = z_ai . z_bi / sigma

InfoNCE without the positive in the denominator. InfoNCE's gradient is DCL's times
q_i = 1 - softmax_i(s_i), which vanishes as the positive grows easy or negatives few.
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
  """DCL, both directions, over the global batch; a row without negatives is left out.

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    temperature: at the start, or for good if not learned; divides cosine similarities.
    learned: whether the temperature is a parameter; the paper keeps it fixed.
    max_scale: upper bound of 1 / temperature.
    sigma: of the weights w of DCLW, which have no gradient; None: w = 1, plain DCL.
    intra: also take negatives within each modality, as for two views of one image.
    negatives: "rows": all other rows; "ids": those of another batch["id"].
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  temperature: float = 0.1
  learned: bool = False
  max_scale: float = 100.0
  sigma: float | None = None
  intra: bool = False
  negatives: str = "rows"
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    pairing.check_negatives(self.negatives)
    scaling.check(self.temperature, self.max_scale)
    if self.sigma is not None and self.sigma <= 0:
      raise ValueError(f"sigma = {self.sigma} must be above 0, or None for plain DCL")

  def init(self, key: Array) -> Params:
    """Returns {}, or {"log_scale": f32[]} if the temperature is learned."""
    del key
    return scaling.parameters(self.temperature, self.learned)

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows."""
    scale = scaling.inverse(params, self.temperature, self.max_scale)
    metrics = {"dcl/temperature": 1 / scale}
    how: dict[str, Any] = dict(strategy=self.strategy, tile=self.tile)
    how["exclude"] = pairing.no_negatives(batch, self.negatives)
    terms = []
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      rows, cols = reduce.symmetric_logsumexp(z[a], z[b], scale, valid=valid, **how)
      similarity = pairing.positive(z[a], z[b])
      target = scale * self._weight(similarity, valid) * similarity
      for x, y, others in ((a, b, rows), (b, a, cols)):
        if self.intra:
          own = reduce.row_logsumexp(z[x], z[x], scale, valid=valid, **how)
          others = pairing.log_total(others, own)
        counted = valid & ~jnp.isneginf(others)
        term = pairing.masked_mean(others - target, counted)
        # q_i, the share of InfoNCE's gradient that is left of DCL's.
        left = pairing.masked_mean(jax.nn.sigmoid(others - scale * similarity), counted)
        metrics |= {f"dcl/{x}_to_{y}": term, f"dcl/coupling_{x}_to_{y}": left}
        terms.append(term)
      metrics[f"dcl/positive_{a}_{b}"] = pairing.masked_mean(similarity, valid)
    return jnp.mean(jnp.stack(terms)), metrics

  def _weight(self, similarity: Array, valid: Array) -> Array:
    """Returns f32[b], of mean 1: more for positives that are further apart."""
    if self.sigma is None:
      return jnp.ones_like(similarity)
    logit = jnp.where(valid, jax.lax.stop_gradient(similarity), -jnp.inf) / self.sigma
    top = jnp.maximum(jnp.max(logit), -1 / self.sigma)  # finite if no row is valid
    ease = jnp.exp(logit - top)
    return 2 - ease / jnp.maximum(pairing.masked_mean(ease, valid), 1e-30)
