"""Supervised, multi-positive contrastive learning: SupCon (arXiv 2004.11362, eq. 2, 3).

P(i): the valid columns of the same batch["id"] as row i;  s = z_a z_b^T / t
L_out = mean_i [lse_j(s_ij) - 1/|P(i)| sum_{p in P(i)} s_ip]
L_in = mean_i [lse_j(s_ij) - log(1/|P(i)| sum_{p in P(i)} exp(s_ip))]

and the mean with the same of the columns. With ids that are all different both are
InfoNCE. "out" pulls every positive alike; "in" is content with the nearest.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce
from model.losses import scale as scaling
from model.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """SupCon, both directions, over the global batch; reads batch["id"].

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    temperature: at the start, or for good if not learned; divides cosine similarities.
    learned: whether the temperature is a parameter; ours, the paper keeps it fixed.
    max_scale: upper bound of 1 / temperature.
    form: where the mean over positives is taken, "out" of the logarithm or "in" it.
    intra: compare within each modality too, but for the row itself, as the paper does
      with two views of one image; form "out" only.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  temperature: float = 0.1
  learned: bool = True
  max_scale: float = 100.0
  form: str = "out"
  intra: bool = False
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    scaling.check(self.temperature, self.max_scale)
    if self.form not in ("out", "in"):
      raise ValueError(f"form = {self.form!r} must be 'out' or 'in'")
    if self.intra and self.form == "in":
      raise ValueError("intra = True needs form = 'out', which the paper recommends")

  def init(self, key: Array) -> Params:
    """Returns {"log_scale": f32[]}, or {} if the temperature is fixed."""
    del key
    return scaling.parameters(self.temperature, self.learned)

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows.

    Raises:
      ValueError: the batch has no "id".
    """
    scale = scaling.inverse(params, self.temperature, self.max_scale)
    metrics = {"supcon/temperature": 1 / scale}
    ids = pairing.ids(batch)
    terms = []
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      how: dict[str, Any] = dict(strategy=self.strategy, tile=self.tile, valid=valid)
      rows, cols = reduce.symmetric_logsumexp(z[a], z[b], scale, **how)
      count = jnp.maximum(pairing.count_same(ids, **how), 1.0)
      if self.form == "in":
        both = reduce.symmetric_logsumexp(z[a], z[b], scale, only=(ids, ids), **how)
        near = tuple(jnp.where(valid, x, 0.0) - jnp.log(count) for x in both)
      else:
        near = tuple(
          self._mean(z[x], z[y], scale, ids, count, how) for x, y in ((a, b), (b, a))
        )
      for x, y, lse, target in ((a, b, rows, near[0]), (b, a, cols, near[1])):
        if self.intra:
          own = reduce.row_logsumexp(z[x], z[x], scale, exclude="diagonal", **how)
          lse = pairing.log_total(lse, own)
        term = pairing.masked_mean(lse - target, valid)
        metrics[f"supcon/{x}_to_{y}"] = term
        terms.append(term)
      metrics[f"supcon/positives_{a}_{b}"] = pairing.masked_mean(count, valid)
    return jnp.mean(jnp.stack(terms)), metrics

  def _mean(self, x, y, scale, ids, count, how) -> Array:
    """Returns f32[b]: the mean score of the positives of each row of x."""
    positive = (ids, ids)
    total = reduce.pair_sum(if_positive, x, y, scale, positive=positive, **how)
    if not self.intra:
      return total / count
    within = reduce.pair_sum(if_positive, x, x, scale, positive=positive, **how)
    within = within - scale * pairing.positive(x, x)  # the row itself
    return (total + within) / (2 * count - 1)


def if_positive(s: Array, positive: Array) -> Array:
  """Returns s where positive, else 0."""
  return jnp.where(positive, s, 0.0)
