"""Cross-correlation near the identity: Barlow Twins (arXiv 2103.03230, eq. 1 and 2).

L = scale * [sum_k (1 - C_kk)^2 + redundancy * sum_{k != l} C_kl^2],
C = A^T B / b, A and B standardised over the batch, each dimension on its own

Nothing of [b, b]: memory O(d^2), time O(b d^2). Row norms count, so that it takes
embeddings as they are, not normalised.
"""

import dataclasses
from typing import ClassVar

from jax import lax
import jax.numpy as jnp

from model.losses import pairs as pairing
from model.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """Barlow Twins over the global batch, between two modalities (or two views).

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    redundancy: weight of what is off the diagonal (the paper's lambda).
    scale: of the whole; the released recipe has 0.024.
    epsilon: added to variances, as batch normalisation does.
  """

  normalized: ClassVar[bool] = False

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  redundancy: float = 0.0051
  scale: float = 1.0
  epsilon: float = 1e-5

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
      x, y = (self._standard(z[m], valid) for m in (a, b))
      count = jnp.sum(valid.astype(jnp.float32))
      c = jnp.matmul(x.T, y, precision=lax.Precision.HIGHEST) / jnp.maximum(count, 1.0)
      own = jnp.diagonal(c)
      on = jnp.where(count > 0, jnp.sum(jnp.square(1 - own)), 0.0)
      # Not the difference of two sums, whose rounding would be of the diagonal's size.
      off = jnp.sum(jnp.square(jnp.where(jnp.eye(c.shape[0], dtype=bool), 0.0, c)))
      terms.append(self.scale * (on + self.redundancy * off))
      metrics |= {f"barlow/on_{a}_{b}": on, f"barlow/off_{a}_{b}": off}
    return jnp.mean(jnp.stack(terms)), metrics

  def _standard(self, x: Array, valid: Array) -> Array:
    """Returns f32[b, d]: of mean 0 and variance 1 over valid rows; others are 0."""
    keep = valid[:, None]
    count = jnp.maximum(jnp.sum(valid.astype(jnp.float32)), 1.0)
    x = jnp.where(keep, x.astype(jnp.float32), 0.0)
    x = jnp.where(keep, x - jnp.sum(x, axis=0, keepdims=True) / count, 0.0)
    variance = jnp.sum(x * x, axis=0, keepdims=True) / count
    return x * lax.rsqrt(variance + self.epsilon)
