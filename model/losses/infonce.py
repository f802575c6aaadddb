"""Symmetric softmax cross-entropy between pairs: CLIP (arXiv 2103.00020, fig. 3).

L = 1/2 mean_i [lse_j(s_ij) - s_ii] + 1/2 mean_j [lse_i(s_ij) - s_jj],
s = z_a z_b^T / t

Each row has one positive, the one it came with: rows that share batch["id"] are
negatives of each other here, as in CLIP.
"""

import dataclasses

import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce
from model.losses import scale as scaling
from model.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """InfoNCE, both directions, over the global batch.

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    temperature: at the start, or for good if not learned; divides cosine similarities.
    learned: whether the temperature is a parameter, shared by all pairs.
    max_scale: upper bound of 1 / temperature.
    label_smoothing: share of the target that is spread evenly over all valid columns.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  temperature: float = 0.07
  learned: bool = True
  max_scale: float = 100.0
  label_smoothing: float = 0.0
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    scaling.check(self.temperature, self.max_scale)
    if not 0 <= self.label_smoothing < 1:
      raise ValueError(f"label_smoothing = {self.label_smoothing} must be in [0, 1)")

  def init(self, key: Array) -> Params:
    """Returns {"log_scale": f32[]}, or {} if the temperature is fixed."""
    del key
    return scaling.parameters(self.temperature, self.learned)

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows."""
    scale = scaling.inverse(params, self.temperature, self.max_scale)
    metrics = {"infonce/temperature": 1 / scale}
    terms = []
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      rows, cols = reduce.symmetric_logsumexp(
        z[a], z[b], scale, valid=valid, strategy=self.strategy, tile=self.tile
      )
      similarity = pairing.positive(z[a], z[b])
      for x, y, lse in ((a, b, rows), (b, a, cols)):
        target = scale * self._target(z[x], z[y], similarity, valid)
        term = pairing.masked_mean(lse - target, valid)
        metrics[f"infonce/{x}_to_{y}"] = term
        terms.append(term)
      metrics[f"infonce/positive_{a}_{b}"] = pairing.masked_mean(similarity, valid)
    return jnp.mean(jnp.stack(terms)), metrics

  def _target(self, x: Array, y: Array, similarity: Array, valid: Array) -> Array:
    """Returns f32[b]: the similarity expected under the (smoothed) target."""
    if not self.label_smoothing:
      return similarity
    # mean_j x_i . y_j = x_i . mean_j y_j: exact, and no [b, b] is needed.
    count = jnp.maximum(jnp.sum(valid.astype(jnp.float32)), 1.0)
    kept = jnp.where(valid[:, None], y.astype(jnp.float32), 0.0)
    spread = x.astype(jnp.float32) @ (jnp.sum(kept, axis=0) / count)
    return (1 - self.label_smoothing) * similarity + self.label_smoothing * spread
