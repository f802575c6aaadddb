"""Conditional contrastive learning with kernels: CCLK (arXiv 2202.05458).

A batch seldom holds two examples of equal condition c (an attribute, a sensitive value,
a similar embedding). Their expectation is estimated from all examples instead,
E[k(x_i, y) | c_i] = sum_j W_ji k(x_i, y_j),  W = (K_c + ridge I)^-1 K_c,
k(x, y) = exp(x . y / t), entries of W below `clip` being 0, without a gradient.

"negatives": the condition says who is a negative (a fair representation, hard ones):
  L = -log k_ii / (k_ii + (n - 1) sum_{j != i} W_ji [k(x_i, y_j) + k(x_i, x_j)])
"positives": the condition says who is a positive (weak supervision):
  L = -log P_i / (P_i + sum_j k(x_i, y_j) + sum_{j != i} k(x_i, x_j)),
  P_i = sum_j W_ji k(x_i, y_j) + sum_{j != i} W_ji k(x_i, x_j)
Both from either side. The released code leaves j = i out of P_i, which may then be 0.
Needs [b, b] matrices and, for W, time O(b^3).
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from model.losses import distance, reductions
from model.losses import pairs as pairing
from model.types import Array, Batch, Metrics, Params

MODES = ("negatives", "positives")
KERNELS = ("rbf", "cosine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """CCLK over the global batch, of two views or modalities.

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    condition: the batch's f32[b, p] (one-hot for classes); rows of p > 1 zeros,
      unlabelled, are left out. None: each side's own embedding, for hard negatives.
    mode: "negatives" or "positives": whom the condition finds.
    kernel: of conditions, "rbf" (exp(-||c - c'||^2 / width)) or "cosine".
    width: of the rbf kernel.
    ridge: of the inverse; the rounding of W in f32 grows with b / ridge (2e-3 of W at
      the paper's 0.01 for weak supervision; it has 100 for hard negatives, and 1 is
      ours).
    clip: weights below are 0, so that none is negative.
    temperature: t, fixed.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  condition: str | None = None
  mode: str = "negatives"
  kernel: str = "rbf"
  width: float = 1.0
  ridge: float = 1.0
  clip: float = 1e-6
  temperature: float = 0.1

  def __post_init__(self):
    pairing.check(self.pairs)
    for name, known in (("mode", MODES), ("kernel", KERNELS)):
      if getattr(self, name) not in known:
        raise ValueError(f"{name} = {getattr(self, name)!r} must be one of {known}")
    for name in ("width", "ridge", "temperature"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} = {getattr(self, name)} must be above 0")

  @property
  def reads(self) -> tuple[str, ...]:
    """The keys of the batch, besides modalities, that the loss needs."""
    return (self.condition,) if self.condition else ()

  def init(self, key: Array) -> Params:
    """Returns {}: nothing is learned."""
    del key
    return {}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows.

    Raises:
      ValueError: the batch has no such condition.
    """
    del params
    if self.condition is not None and self.condition not in batch:
      raise ValueError(
        f"the batch has no {self.condition!r} (condition of cclk), only {sorted(batch)}"
      )
    metrics: Metrics = {}
    terms = []
    for x, y in pairing.directions(self.pairs):
      valid = pairing.valid_rows(batch, z[x].shape[0], x, y)
      given = z[x]
      if self.condition is not None:
        given = batch[self.condition]
        valid &= pairing.labelled(given)
      weights = lax.stop_gradient(self.weights(given, valid))
      a, b = (jnp.where(valid[:, None], z[m].astype(jnp.float32), 0.0) for m in (x, y))
      term = pairing.masked_mean(self._rows(a, b, weights.T, valid), valid)
      metrics[f"cclk/{x}_to_{y}"] = term
      terms.append(term)
    return jnp.mean(jnp.stack(terms)), metrics

  def weights(self, condition: Array, valid: Array) -> Array:
    """Returns W f32[b, b] of condition [b, p], 0 for rows that are not valid."""
    c = jnp.where(valid[:, None], condition.astype(jnp.float32), 0.0)
    if self.kernel == "cosine":
      square = jnp.sum(c * c, axis=-1, keepdims=True)
      c *= lax.rsqrt(jnp.maximum(square, 1e-12))
      k = reductions.dot(c, c, (1, 1))
    else:
      k = jnp.exp(
        jnp.minimum(reductions.dot(*distance.lifted(c, c), (1, 1)), 0.0) / self.width
      )
    own = jnp.eye(k.shape[0], dtype=bool)
    k = jnp.where(valid[:, None] & valid[None, :], jnp.where(own, 1.0, k), 0.0)
    ridge = self.ridge * own.astype(jnp.float32)
    w = jax.scipy.linalg.solve(k + ridge, k, assume_a="pos")
    return jnp.where(w < self.clip, 0.0, w)

  def _rows(self, x: Array, y: Array, w: Array, valid: Array) -> Array:
    """Returns f32[b]: the loss of each row of x; w[i, j] is the weight of j for i."""
    scores = [reductions.dot(x, v, (1, 1)) / self.temperature for v in (y, x)]
    own = jnp.eye(x.shape[0], dtype=bool)
    # A row that is not valid is given itself, to have a finite logarithm.
    everyone = (valid[None, :] | own).astype(jnp.float32)
    others = jnp.where(own, 0.0, everyone)
    if self.mode == "negatives":
      more = jnp.maximum(jnp.sum(valid.astype(jnp.float32)) - 1, 0.0)
      w = more * jnp.where(own, 0.0, w)
      top = jnp.diagonal(scores[0])
      return _weighted(scores, (jnp.where(own, 1.0, w), w)) - top
    within = jnp.where(own, 0.0, w)
    across = jnp.where(own & ~valid[None, :], 1.0, w)
    everything = _weighted(scores, (across + everyone, within + others))
    return everything - _weighted(scores, (across, within))


def _weighted(scores: list[Array], weights: tuple[Array, Array]) -> Array:
  """Returns f32[b]: log sum_j w_ij exp s_ij, over both matrices."""
  s, w = jnp.concatenate(scores, axis=1), jnp.concatenate(weights, axis=1)
  return jax.nn.logsumexp(s, axis=1, b=w)
