"""Continuously weighted contrastive loss: CWCL (arXiv 2309.14580).

q: of a frozen tower, p: of the tower in training;  s_ij = p_i . q_j / t
L = 1/2 mean_i [lse_j(s_ij) - sum_j w_ij s_ij / sum_j w_ij]
  + 1/2 mean_j [lse_i(s_ij) - s_jj],  w_ij = k(q_i . q_j) without gradient

What the frozen tower finds alike, the other is to find alike: soft targets for the rows
of p. The rows of q keep one positive each: p's own similarities mean nothing yet.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce
from model.losses import scale as scaling
from model.types import Array, Batch, Metrics, Params

KERNELS = ("affine", "exp")
ROWS = ("trained", "frozen", "both")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """CWCL over the global batch; freezing the tower is the optimizer's business.

  Attributes:
    pairs: (frozen, trained) modalities; the loss is the mean over pairs.
    temperature: at the start, or for good if not learned; divides cosine similarities.
    learned: whether the temperature is a parameter.
    max_scale: upper bound of 1 / temperature.
    kernel: k(c) is (c + 1) / 2 ("affine", the paper's) or exp((c - 1) / width) ("exp").
      Affine weights of cosines near 0 are nearly uniform: see effective_positives.
    width: of the kernel "exp".
    soft: whose rows have soft targets: "trained" (as above), "frozen", or "both".
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  temperature: float = 0.07
  learned: bool = True
  max_scale: float = 100.0
  kernel: str = "affine"
  width: float = 0.1
  soft: str = "trained"
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    scaling.check(self.temperature, self.max_scale)
    if self.kernel not in KERNELS or self.soft not in ROWS:
      raise ValueError(
        f"kernel = {self.kernel!r} must be one of {KERNELS}, and "
        f"soft = {self.soft!r} one of {ROWS}"
      )
    if not self.width > 0:
      raise ValueError(f"width = {self.width} must be above 0")

  def init(self, key: Array) -> Params:
    """Returns {"log_scale": f32[]}, or {} if the temperature is fixed."""
    del key
    return scaling.parameters(self.temperature, self.learned)

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows."""
    scale = scaling.inverse(params, self.temperature, self.max_scale)
    metrics = {"cwcl/temperature": 1 / scale}
    terms = []
    for frozen, trained in self.pairs:
      q, p = z[frozen], z[trained]
      valid = pairing.valid_rows(batch, q.shape[0], frozen, trained)
      how: dict[str, Any] = dict(valid=valid, strategy=self.strategy, tile=self.tile)
      of_p, of_q = reduce.symmetric_logsumexp(p, q, scale, **how)
      similarity = pairing.positive(p, q)
      for kind, x, y, lse in (("trained", p, q, of_p), ("frozen", q, p, of_q)):
        target = scale * similarity
        if self.soft in (kind, "both"):
          sums = reduce.pair_sum(self.weigh, x, y, scale, given=(q, q), **how)
          total = jnp.where(valid, sums[0], 1.0)
          target = sums[1] / total
          spread = jnp.exp(jnp.log(total) - sums[2] / total)
          metrics[f"cwcl/effective_positives_{frozen}"] = pairing.masked_mean(
            spread, valid
          )
        a, b = (trained, frozen) if kind == "trained" else (frozen, trained)
        term = pairing.masked_mean(lse - target, valid)
        metrics[f"cwcl/{a}_to_{b}"] = term
        terms.append(term)
      metrics[f"cwcl/positive_{frozen}_{trained}"] = pairing.masked_mean(
        similarity, valid
      )
    return jnp.mean(jnp.stack(terms)), metrics

  def weigh(self, s: Array, own: Array, c: Array) -> tuple[Array, Array, Array]:
    """Returns (w, w s, w log w) of pairs of score s, whose q have the cosine c."""
    del own
    if self.kernel == "affine":
      w = jnp.maximum((c + 1) / 2, 0.0)  # a cosine can round to below -1
    else:
      w = jnp.exp((c - 1) / self.width)
    return w, w * s, jax.scipy.special.xlogy(w, w)
