"""Contrastive attraction and contrastive repulsion: CACR (arXiv 2105.03746).

L = mean_q sum_k p_k alpha ||q - q_k||^2 - mean_q sum_m w_m beta ||q - n_m||^2,
p = softmax_k(+pull ||q - q_k||^2),  w = softmax_m(-push ||q - n_m||^2)

q_k are the other views of the query's row, n_m those of other rows: a far positive is
pulled harder, a near negative pushed harder. The gradient flows through p and w too.
With `debias` (the chance that a negative is of the query's kind) the second mean is
that of true negatives, E_- = (E - debias * E_+) / (1 - debias). The released code has
the sign of E_+ the other way, so that it pushes positives apart. Its form for MoCo-v3,
with keys of an average, and the RBF variant of that, an InfoNCE of weighted views, are
not built.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from model.losses import distance, reduce
from model.losses import pairs as pairing
from model.types import Array, Batch, Metrics, Params

_NEAREST = 1e-12  # squared; nearer negatives weigh nothing and have no slope


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """CACR over the global batch; views are modalities, each a query in turn.

  Attributes:
    modalities: modalities, at least two.
    alpha: weight of the attraction.
    beta: weight of the repulsion.
    pull: how much farther positives count for more; 0: all alike. No matter for two
      views, where each query has one positive.
    push: how much nearer negatives count for more; 0: all alike.
    debias: chance that a negative is a positive; 0: none is.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  modalities: tuple[str, ...] = ("image", "text")
  alpha: float = 1.0
  beta: float = 1.0
  pull: float = 1.0
  push: float = 0.9
  debias: float = 0.0
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    if isinstance(self.modalities, str) or len(self.modalities) < 2:
      raise ValueError(
        f"modalities = {self.modalities!r} must be a tuple of at least two names"
      )
    if not 0 <= self.debias < 1:
      raise ValueError(f"debias = {self.debias} must be in [0, 1)")

  def init(self, key: Array) -> Params:
    """Returns {}: nothing is learned."""
    del key
    return {}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows."""
    del params
    valid = pairing.valid_rows(batch, z[self.modalities[0]].shape[0], *self.modalities)
    attraction = []
    for q in self.modalities:
      apart = [distance.squared(z[q], z[k]) for k in self.modalities if k != q]
      near = jnp.stack(apart, axis=-1)
      p = jax.nn.softmax(self.pull * near, axis=-1)
      attraction.append(pairing.masked_mean(jnp.sum(p * near, axis=-1), valid))
    repulsion = []
    for i, x in enumerate(self.modalities):
      for y in self.modalities[i + 1 :]:
        far = self._negatives(z[x], z[y], valid)
        own = pairing.masked_mean(distance.squared(z[x], z[y]), valid)
        repulsion.append((far - self.debias * own) / (1 - self.debias))
    close, away = jnp.mean(jnp.stack(attraction)), jnp.mean(jnp.stack(repulsion))
    metrics = {"cacr/attraction": close, "cacr/repulsion": away}
    return self.alpha * close - self.beta * away, metrics

  def _negatives(self, x: Array, y: Array, valid: Array) -> Array:
    """Returns f32[]: mean of sum_m w_m ||q - n_m||^2, both modalities in turn q.

    sum_m w_m d_m^2 = exp(log sum_m exp(log d_m^2 - push d_m^2) - log sum_m exp(-push
    d_m^2)): two passes, neither of which overflows.
    """
    how: dict[str, Any] = dict(
      valid=valid, exclude="diagonal", strategy=self.strategy, tile=self.tile
    )
    x, y = distance.lifted(x, y)
    alone = reduce.symmetric_logsumexp(x, y, self.push, **how)
    times = reduce.symmetric_logsumexp(x, y, 1.0, fn=self._weighted, **how)
    # Without any other row both are -inf.
    some = valid & (jnp.sum(valid.astype(jnp.float32)) > 1)
    ratio = (jnp.where(some, t - a, -jnp.inf) for t, a in zip(times, alone))
    forth, back = (pairing.masked_mean(jnp.exp(x), valid) for x in ratio)
    return (forth + back) / 2

  def _weighted(self, s: Array, same: Array) -> Array:
    del same
    return self.push * s + jnp.log(jnp.maximum(-s, _NEAREST))
