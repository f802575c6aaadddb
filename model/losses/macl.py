"""Model-aware contrastive learning: MACL (arXiv 2207.07874).

A = mean_i z_ai . z_bi,  t = t0 (1 + alpha (A - A0)),  both without gradient
L = 1/2 mean_i [-log P_i / (1 - P_i)] + the same of the columns
P_i = softmax_i(s_i),  s = z_a z_b^T / t

The temperature rises with alignment, so that an aligned model tolerates near
duplicates; the weight 1 / (1 - P_i), without gradient, undoes InfoNCE's vanishing
gradient: what is left is the gradient of DCL (model/losses/dcl.py), exactly.
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
  """MACL, both directions, over the global batch; a row without negatives is left out.

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    temperature: t0.
    alpha: how far the temperature follows the alignment, in [0, 1]; 0: fixed.
    alignment: A0, the mean similarity of positives at which t = t0, in [0, 1).
    max_scale: upper bound of 1 / t: alpha (A - A0) can come near -1.
    reweight: whether to divide by 1 - P_i.
    negatives: "rows": all other rows; "ids": those of another batch["id"].
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  temperature: float = 0.1
  alpha: float = 0.5
  alignment: float = 0.0
  max_scale: float = 100.0
  reweight: bool = True
  negatives: str = "rows"
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    pairing.check_negatives(self.negatives)
    scaling.check(self.temperature, self.max_scale)
    if not (0 <= self.alpha <= 1 and 0 <= self.alignment < 1):
      raise ValueError(
        f"alpha = {self.alpha} must be in [0, 1], "
        f"alignment = {self.alignment} in [0, 1)"
      )

  def init(self, key: Array) -> Params:
    """Returns {}: the temperature follows the model, not a gradient."""
    del key
    return {}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows."""
    del params
    metrics: Metrics = {}
    terms = []
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      similarity = pairing.positive(z[a], z[b])
      aligned = jax.lax.stop_gradient(pairing.masked_mean(similarity, valid))
      t = self.temperature * (1 + self.alpha * (aligned - self.alignment))
      t = jnp.maximum(t, 1 / self.max_scale)
      rows, cols = reduce.symmetric_logsumexp(
        z[a],
        z[b],
        1 / t,
        valid=valid,
        exclude=pairing.no_negatives(batch, self.negatives),
        strategy=self.strategy,
        tile=self.tile,
      )
      for x, y, others in ((a, b, rows), (b, a, cols)):
        counted = valid & ~jnp.isneginf(others)
        margin = jnp.where(counted, others - similarity / t, 0.0)
        each = reweighted(margin) if self.reweight else jax.nn.softplus(margin)
        term = pairing.masked_mean(each, counted)
        metrics[f"macl/{x}_to_{y}"] = term
        sure = pairing.masked_mean(jax.nn.sigmoid(-margin), counted)
        metrics[f"macl/probability_{x}_to_{y}"] = sure
        terms.append(term)
      metrics[f"macl/temperature_{a}_{b}"] = t
      metrics[f"macl/positive_{a}_{b}"] = aligned
    return jnp.mean(jnp.stack(terms)), metrics


def reweighted(margin: Array) -> Array:
  """Returns -log P / sg(1 - P) of margin x f32[b], log of (1 - P) / P; its slope is 1.

  -log P = softplus(x) and 1 - P = sigmoid(x), which both underflow as P goes to 1:
  their ratio goes to 1 + exp(x) / 2. Dividing by a clipped 1 - P would lose the slope.
  """
  x = jax.lax.stop_gradient(margin)
  safe = jnp.maximum(x, -15.0)
  ratio = jax.nn.softplus(safe) / jax.nn.sigmoid(safe)
  value = jnp.where(x < -15.0, 1 + jnp.exp(x) / 2, ratio)
  return value + (margin - x)
