"""Variance, invariance, covariance: VICReg (arXiv 2105.04906, eq. 1 to 6).

L = invariance * mean_ik (a_ik - b_ik)^2
  + variance * mean_k [max(0, 1 - std_k(a)) + max(0, 1 - std_k(b))] / 2
  + covariance * sum_{k != l} [cov_kl(a)^2 + cov_kl(b)^2] / d

The means of the released code and of the paper's algorithm 1, for which the weights 25,
25 and 1 were chosen; eq. 5 and 6 leave out the 1 / d of the first term, and the code
alone has the 1 / 2 of the second. Nothing of [b, b]: memory O(d^2). Row norms count, so
that it takes embeddings as they are, not normalised.
"""

import dataclasses
from typing import ClassVar

from jax import lax
import jax.numpy as jnp

from model.losses import distance
from model.losses import pairs as pairing
from model.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """VICReg over the global batch, between two modalities (or two views).

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    invariance: weight of the distance of pairs.
    variance: weight of the standard deviations short of 1.
    covariance: weight of covariances of different dimensions.
    epsilon: added to variances under the root.
  """

  normalized: ClassVar[bool] = False

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  invariance: float = 25.0
  variance: float = 25.0
  covariance: float = 1.0
  epsilon: float = 1e-4

  def __post_init__(self):
    pairing.check(self.pairs)
    if not self.epsilon > 0:
      raise ValueError(f"epsilon = {self.epsilon} must be above 0")

  def init(self, key: Array) -> Params:
    """Returns {}: nothing is learned."""
    del key
    return {}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, of any norm -> (f32[], metrics); over valid rows."""
    del params
    metrics: Metrics = {}
    terms = []
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      apart = pairing.masked_mean(distance.squared(z[a], z[b]), valid) / z[a].shape[-1]
      (short, cov), (short_b, cov_b) = (self._spread(z[m], valid) for m in (a, b))
      short, cov = (short + short_b) / 2, cov + cov_b
      terms.append(
        self.invariance * apart + self.variance * short + self.covariance * cov
      )
      metrics |= {
        f"vicreg/invariance_{a}_{b}": apart,
        f"vicreg/variance_{a}_{b}": short,
        f"vicreg/covariance_{a}_{b}": cov,
      }
    return jnp.mean(jnp.stack(terms)), metrics

  def _spread(self, x: Array, valid: Array) -> tuple[Array, Array]:
    """Returns f32[]: mean_k max(0, 1 - std_k), and sum_{k != l} cov_kl^2 / d."""
    keep = valid[:, None]
    count = jnp.sum(valid.astype(jnp.float32))
    x = jnp.where(keep, x.astype(jnp.float32), 0.0)
    mean = jnp.sum(x, axis=0, keepdims=True) / jnp.maximum(count, 1.0)
    x = jnp.where(keep, x - mean, 0.0)
    d = x.shape[-1]
    cov = jnp.matmul(x.T, x, precision=lax.Precision.HIGHEST)
    cov /= jnp.maximum(count - 1, 1.0)
    std = jnp.sqrt(jnp.diagonal(cov) + self.epsilon)
    short = jnp.where(count > 0, jnp.mean(jnp.maximum(1 - std, 0.0)), 0.0)
    off = jnp.where(jnp.eye(d, dtype=bool), 0.0, cov)
    return short, jnp.sum(off * off) / d
