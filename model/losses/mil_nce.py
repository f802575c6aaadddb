"""Bags of positives, of which some may match: MIL-NCE (arXiv 1912.06430, eq. 1).

L = -mean_i log[P_i / (P_i + N_i)], both directions, s = z_a z_b^T / t,
P_i = sum_{j in bag(i)} exp s_ij,  N_i = sum_{j not in bag(i)} exp s_ij

Rows of equal batch["id"] are one bag: the sentences of a report, the narrations around
a clip, the regions of an image, each in a row of its own. The sum is over the bag's
likelihoods, not their logarithms as in supervised contrastive learning: one member that
matches will do, and the others need not. With `joint` the denominator also has the
bag's other side, sum_{j in bag(i)} sum_{k not in bag(i)} exp s_kj, as in the paper
(whose released code counts P_i twice in it). Without, it is a softmax over bags, of
each row against the other side's: bag J scores log sum_{j in J} exp s_ij. One side is
pooled, and by a sum, so that a larger bag scores more. The softmax of arXiv 2212.05561
is over pairs of bags, which have one score each: with logsumexp pooling
S_IJ = (1/r) log mean exp(r l) over the scores l of their instances, with a sharpness r
beside the temperature.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce
from model.losses import scale as scaling
from model.types import Array, Batch, Metrics, Params

_NONE = -1e30  # the logarithm of nothing; unlike -inf, times 0 it is 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """MIL-NCE over the global batch, both directions.

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    temperature: at the start, or for good if not learned; divides cosine similarities.
    learned: whether the temperature is a parameter, shared by all pairs. A learned one
      is ours: MIL-NCE compares plain inner products, without any.
    max_scale: upper bound of 1 / temperature.
    joint: one denominator for the rows and the columns of a bag.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  temperature: float = 0.07
  learned: bool = True
  max_scale: float = 100.0
  joint: bool = True
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    if not 0 < 1 / self.max_scale <= self.temperature:
      raise ValueError(
        f"temperature = {self.temperature} must be at least 1 / max_scale = "
        f"{1 / self.max_scale}"
      )

  def init(self, key: Array) -> Params:
    """Returns {"log_scale": f32[]}, or {} if the temperature is fixed."""
    del key
    return {"log_scale": scaling.initial(1 / self.temperature)} if self.learned else {}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows.

    Rows without batch["id"] are bags of one.
    """
    scale: Array = jnp.float32(1 / self.temperature)
    if self.learned:
      scale = scaling.positive(params["log_scale"], self.max_scale)
    metrics = {"mil_nce/temperature": 1 / scale}
    terms = []
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      bags = (batch["id"], batch["id"]) if "id" in batch else "diagonal"
      how: dict[str, Any] = dict(valid=valid, strategy=self.strategy, tile=self.tile)
      match = reduce.symmetric_logsumexp(z[a], z[b], scale, only=bags, **how)
      apart = reduce.symmetric_logsumexp(z[a], z[b], scale, exclude=bags, **how)
      other = [jnp.where(jnp.isneginf(x), _NONE, x) for x in apart]
      if self.joint:
        one = jnp.ones((z[a].shape[0], 1), jnp.float32)
        # Summed over the bag, as scores of one dimension.
        far = [
          reduce.row_logsumexp(one, x[:, None], 1.0, only=bags, **how) for x in other
        ]
        other = [jnp.logaddexp(x, y) for x, y in zip(other, reversed(far))]
      for x, y, p, n in zip((a, b), (b, a), match, other):
        # A row that is not valid may have no bag: its -inf is not to meet another.
        p = jnp.where(valid, p, 0.0)
        term = pairing.masked_mean(jnp.logaddexp(p, n) - p, valid)
        metrics[f"mil_nce/{x}_to_{y}"] = term
        terms.append(term)
    return jnp.mean(jnp.stack(terms)), metrics
