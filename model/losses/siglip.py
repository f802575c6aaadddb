"""Sigmoid loss over all pairs: SigLIP (arXiv 2303.15343, eq. 1 and alg. 1).

L = -1/b sum_ij log sigmoid(y_ij (t z_ai . z_bj + c)),  y_ii = 1, y_ij = -1

A sum over all pairs divided by the number of rows, not of pairs, so that its size grows
with the batch until the negatives are learned, as in the paper.
"""

import dataclasses

import jax
import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce
from model.losses import scale as scaling
from model.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """SigLIP over the global batch, with a learned scale and bias.

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    scale: of cosine similarities at the start (t).
    bias: of all scores at the start (c): -10 starts at "nothing matches".
    max_scale: upper bound of the scale; the paper has none, and stays far below it.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  scale: float = 10.0
  bias: float = -10.0
  max_scale: float = 1000.0
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    if not 0 < self.scale <= self.max_scale:
      raise ValueError(
        f"scale = {self.scale} must be above 0, at most max_scale = {self.max_scale}"
      )

  def init(self, key: Array) -> Params:
    """Returns {"log_scale": f32[], "bias": f32[]}."""
    del key
    return {"log_scale": scaling.initial(self.scale), "bias": jnp.float32(self.bias)}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); per valid row."""
    scale, bias = scaling.positive(params["log_scale"], self.max_scale), params["bias"]
    metrics = {"siglip/scale": scale, "siglip/bias": bias}
    terms = []
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      rows = reduce.pair_sum(
        pair_loss,
        z[a],
        z[b],
        scale,
        bias=bias,
        valid=valid,
        strategy=self.strategy,
        tile=self.tile,
      )
      terms.append(pairing.masked_mean(rows, valid))
      similarity = pairing.positive(z[a], z[b])
      metrics[f"siglip/{a}_{b}"] = terms[-1]
      metrics[f"siglip/positive_{a}_{b}"] = pairing.masked_mean(similarity, valid)
      own = pair_loss(scale * similarity + bias, jnp.ones_like(valid))
      metrics[f"siglip/positive_loss_{a}_{b}"] = pairing.masked_mean(own, valid)
    return jnp.mean(jnp.stack(terms)), metrics


def pair_loss(s: Array, positive: Array) -> Array:
  """Returns -log sigmoid(y s), elementwise; y = 1 where positive, else -1."""
  return jax.nn.softplus(jnp.where(positive, -s, s))
