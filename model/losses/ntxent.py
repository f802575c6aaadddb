"""NT-Xent, the loss of SimCLR (arXiv 2002.05709, eq. 1).

2b views v = (z_a, z_b), the partner of each the other view of its row;  s = v v^T / t
L = mean_i [log sum_{j != i} exp(s_ij) - s_i,partner(i)]

Unlike InfoNCE, a view is also told apart from the other rows' views on its own side.
The mean over all 2b views, as in the paper; the released code sums the means of the two
sides, which is twice as much. The temperature is fixed: the paper's is 0.1 on ImageNet.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce
from model.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """NT-Xent over the global batch.

  Attributes:
    pairs: of views, such as (("image_1", "image_2"),), or of modalities; the loss is
      the mean over pairs.
    temperature: t, divides cosine similarities.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  temperature: float = 0.1
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    if not self.temperature > 0:
      raise ValueError(f"temperature = {self.temperature} must be above 0")

  def init(self, key: Array) -> Params:
    """Returns {}: nothing is learned."""
    del key
    return {}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {view: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows."""
    del params
    scale = 1 / self.temperature
    metrics: Metrics = {}
    terms = []
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      how: dict[str, Any] = dict(valid=valid, strategy=self.strategy, tile=self.tile)
      similarity = pairing.positive(z[a], z[b])
      rows, cols = reduce.symmetric_logsumexp(z[a], z[b], scale, **how)
      for x, y, across in ((a, b, rows), (b, a, cols)):
        own = reduce.row_logsumexp(z[x], z[x], scale, exclude="diagonal", **how)
        lse = pairing.log_total(across, own)
        term = pairing.masked_mean(lse - scale * similarity, valid)
        metrics[f"ntxent/{x}_to_{y}"] = term
        terms.append(term)
      metrics[f"ntxent/positive_{a}_{b}"] = pairing.masked_mean(similarity, valid)
    return jnp.mean(jnp.stack(terms)), metrics
