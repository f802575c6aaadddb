"""Adaptive soft targets from neighbours: ASCL (arXiv 2207.11163), within the batch.

Of the rows a_i and columns b_j:
p_ij = softmax_{j != i}(b_i . b_j / t_keys),  c_i = 1 - H(p_i) / log(n - 1)
y_ii = 1,  y_ij = min(1, k c_i p_ij),  all without gradient;  s = a b^T / t
L = mean_i [lse_j(s_ij) - sum_j y_ij s_ij / sum_j y_ij]

and the mean with the same of (b, a). Where the neighbours of a key are ambiguous its
confidence c goes to 0, and the loss to InfoNCE. The paper's keys come from a queue of a
momentum encoder; here they are the batch's own, of the other modality. Its form on
BYOL, with a predictor and no negatives, is not built.
"""

import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce
from model.losses import scale as scaling
from model.types import Array, Batch, Metrics, Params

TARGETS = ("soft", "top", "hard", "one")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """ASCL, both directions, over the global batch of n valid rows.

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    temperature: at the start, or for good if not learned; divides cosine similarities.
    learned: whether the temperature is a parameter; the paper keeps it fixed.
    max_scale: upper bound of 1 / temperature.
    key_temperature: of the similarities between keys.
    neighbours: k.
    targets: "soft": as above; "top" (AHCL): y = c_i for the k nearest keys, else 0;
      "hard": y = 1 for them; "one": for none, which is InfoNCE.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  temperature: float = 0.1
  learned: bool = False
  max_scale: float = 100.0
  key_temperature: float = 0.05
  neighbours: int = 1
  targets: str = "soft"
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    scaling.check(self.temperature, self.max_scale)
    if self.targets not in TARGETS:
      raise ValueError(f"targets = {self.targets!r} must be one of {TARGETS}")
    if self.neighbours < 1 or not self.key_temperature > 0:
      raise ValueError(
        f"neighbours = {self.neighbours} must be at least 1, and "
        f"key_temperature = {self.key_temperature} above 0"
      )

  def init(self, key: Array) -> Params:
    """Returns {}, or {"log_scale": f32[]} if the temperature is learned."""
    del key
    return scaling.parameters(self.temperature, self.learned)

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows."""
    scale = scaling.inverse(params, self.temperature, self.max_scale)
    metrics = {"ascl/temperature": 1 / scale}
    terms = []
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      how: dict[str, Any] = dict(valid=valid, strategy=self.strategy, tile=self.tile)
      rows, cols = reduce.symmetric_logsumexp(z[a], z[b], scale, **how)
      similarity = pairing.positive(z[a], z[b])
      for x, y, lse in ((a, b, rows), (b, a, cols)):
        total, count = scale * similarity, jnp.ones_like(similarity)
        if self.targets != "one":
          keys = lax.stop_gradient(z[y].astype(jnp.float32))
          sure, log_p = self._confidence(keys, how)
          if self.targets == "soft":
            more = self._soft(z[x], z[y], scale, sure, log_p, how)
          else:
            more = self._nearest(z[x], z[y], scale, sure, how)
          total, count = total + more[0], count + more[1]
          metrics[f"ascl/confidence_{y}"] = pairing.masked_mean(sure, valid)
        term = pairing.masked_mean(lse - total / count, valid)
        metrics[f"ascl/{x}_to_{y}"] = term
        metrics[f"ascl/targets_{x}_to_{y}"] = pairing.masked_mean(count, valid)
        terms.append(term)
    return jnp.mean(jnp.stack(terms)), metrics

  def _confidence(self, keys: Array, how) -> tuple[Array, tuple[Array, Array]]:
    """Returns c f32[b], and (g, h) such that log p_ij = g_i . h_j."""
    lse = reduce.row_logsumexp(
      keys, keys, 1 / self.key_temperature, exclude="diagonal", **how
    )
    lse = jnp.where(jnp.isneginf(lse), 0.0, lse)  # the only valid row
    one = jnp.ones((keys.shape[0], 1), jnp.float32)
    g = jnp.concatenate([keys / self.key_temperature, -lse[:, None]], axis=1)
    h = jnp.concatenate([keys, one], axis=1)
    entropy = reduce.pair_sum(entropy_of, one, one, 1.0, given=(g, h), **how)
    count = jnp.sum(how["valid"].astype(jnp.float32)) - 1
    sure = 1 - entropy / jnp.log(jnp.maximum(count, 2.0))  # one neighbour: H = 0
    return jnp.clip(sure, 0.0, 1.0), (g, h)

  def _soft(self, x, y, scale, sure, log_p, how) -> tuple[Array, Array]:
    """Returns (sum_j y_ij s_ij, sum_j y_ij) f32[b] over j other than i."""
    g, h = log_p
    # Not log(0): -inf times the 1 of h may become nan in passes of bf16.
    more = jnp.log(jnp.maximum(self.neighbours * sure, 1e-30))
    g = jnp.concatenate([g[:, :-1], g[:, -1:] + more[:, None]], axis=1)
    return reduce.pair_sum(soft_target, x, y, scale, given=(g, h), **how)

  def _nearest(self, x, y, scale, sure, how) -> tuple[Array, Array]:
    """Returns the same of the k nearest keys."""
    near, place = reduce.row_top_k(y, y, self.neighbours, exclude="diagonal", **how)
    weight = (~jnp.isneginf(near)).astype(jnp.float32)
    if self.targets == "top":
      weight = weight * sure[:, None]
    # Not a matmul: in f32 everywhere, like the scores of model.losses.reductions.
    s = jnp.sum(x.astype(jnp.float32)[:, None, :] * y[place].astype(jnp.float32), -1)
    return scale * jnp.sum(weight * s, axis=1), jnp.sum(weight, axis=1)


def entropy_of(s: Array, own: Array, log_p: Array) -> Array:
  """Returns -p log p of other keys, 0 of a row's own; s is of no use."""
  del s
  return jnp.where(own, 0.0, jax.scipy.special.entr(jnp.exp(log_p)))


def soft_target(s: Array, own: Array, log_y: Array) -> tuple[Array, Array]:
  """Returns (y s, y), y = min(1, exp(log_y)) for other keys, 0 for a row's own."""
  y = jnp.where(own, 0.0, jnp.minimum(jnp.exp(log_y), 1.0))
  return y * s, y
