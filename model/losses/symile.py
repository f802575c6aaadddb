"""Contrast of any number of modalities at once: Symile (arXiv 2411.01053).

m(x, y, z, ...) = sum_d x_d y_d z_d ...,  the multilinear inner product
L = mean over anchors x of mean_i -log [exp(s m(x_i, y_i, z_i)) / sum over the tuples
    (y_j, z_k) of exp(s m(x_i, y_j, z_k))]

log of the number of tuples minus L bounds the total correlation from below, so that a
dependence of all modalities that no two of them show, such as XOR, is learned. With two
modalities it is InfoNCE. Rows that lack a modality are left out; the paper keeps them,
by a learned token in the place of what is missing, which is not built.
"""

import dataclasses
import functools
import operator
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce, tuples
from model.losses import scale as scaling
from model.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """Symile over the global batch; each modality is the anchor once.

  Attributes:
    modalities: two or more.
    scale: of m at the start, or for good if not learned. m of unit vectors [d] is of
      the size d^(1 - M/2) for M modalities: the more of them, the greater the scale.
    learned: whether the scale is a parameter.
    max_scale: upper bound of the scale.
    tuples: which to contrast with the positive. "some": as many as rows; each column's
      modalities come from different rows, paired by a hash of batch["id"] (ties by
      position), so that the order of the rows does not matter. "all": b^(M - 1) of
      them, exact, b^(M - 2) times the time and no more memory.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  modalities: tuple[str, ...] = ("image", "text", "audio")
  scale: float = 14.0
  learned: bool = True
  max_scale: float = 10_000.0
  tuples: str = "some"
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    names = self.modalities
    if not isinstance(names, tuple) or len(set(names)) != len(names) or len(names) < 2:
      raise ValueError(f"modalities = {names!r} must be two or more different names")
    if not 0 < self.scale <= self.max_scale:
      raise ValueError(
        f"scale = {self.scale} must be above 0, at most max_scale = {self.max_scale}"
      )
    if self.tuples not in ("some", "all"):
      raise ValueError(f"tuples = {self.tuples!r} must be 'some' or 'all'")

  def init(self, key: Array) -> Params:
    """Returns {"log_scale": f32[]}, or {} if the scale is fixed."""
    del key
    return scaling.parameters(1 / self.scale, self.learned)

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows.

    Raises:
      ValueError: "some" tuples of three modalities, and the batch has no "id".
    """
    scale = scaling.inverse(params, 1 / self.scale, self.max_scale)
    valid = pairing.valid_rows(batch, z[self.modalities[0]].shape[0], *self.modalities)
    metrics = {"symile/scale": scale}
    own = [z[m] for m in self.modalities]
    if self.tuples == "some":
      partners = tuples.partners_of(len(own) - 2, batch, valid)
      how = self.strategy, self.tile
      far, positive = tuples.contrast(own, partners, valid, scale, *how)
      totals = [pairing.log_total(x, scale * positive) for x in far]
    else:
      product = functools.reduce(operator.mul, (x.astype(jnp.float32) for x in own))
      positive = jnp.sum(product, axis=-1)
      totals = [
        self._all(x, others[0], others[1:], scale, valid)
        for i, x in enumerate(own)
        for others in [own[:i] + own[i + 1 :]]
      ]
    terms = []
    for anchor, total in zip(self.modalities, totals):
      term = pairing.masked_mean(total - scale * positive, valid)
      metrics[f"symile/{anchor}"] = term
      terms.append(term)
    metrics["symile/positive"] = pairing.masked_mean(positive, valid)
    return jnp.mean(jnp.stack(terms)), metrics

  def _all(self, x, y, rest, scale, valid) -> Array:
    """Returns f32[b]: logsumexp over y_j and every combination of rows of `rest`."""
    if not rest:
      how: dict[str, Any] = dict(strategy=self.strategy, tile=self.tile)
      return reduce.row_logsumexp(x, y, scale, valid=valid, **how)

    # Without the checkpoint each step would keep its [b, d] for the backward pass.
    @jax.checkpoint
    def step(total, item):
      row, counts = item
      more = self._all(x, y * row[None, :], rest[1:], scale, valid)
      return jnp.where(counts, pairing.log_total(total, more), total), None

    start = jnp.full(x.shape[0], -jnp.inf, jnp.float32)
    return lax.scan(step, start, (rest[0], valid))[0]
