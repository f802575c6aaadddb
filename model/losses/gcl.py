"""Contrast weighed by graded relevance: GCL (arXiv 2404.08535).

L = 1 / (2 sum_i w_i) sum_i w_i [lse_j(s_ij) + lse_j(s_ji) - 2 s_ii]
w_i = f(grade_i),  s = q d^T / t

Row i is a query, a document, and how relevant it is; a row of more relevance weighs
more. With equal weights it is InfoNCE. Either side may be made of several fields, such
as title and picture: unit(sum_f alpha_f z_f).
"""

import dataclasses

from jax import lax
import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce
from model.losses import scale as scaling
from model.types import Array, Batch, Metrics, Params

KINDS = ("constant", "linear", "inverse", "log")
Field = tuple[str, tuple[tuple[str, float], ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """GCL, both directions, over the global batch; reads batch[grade] f32[b].

  Attributes:
    pairs: (query, document), of modalities or of `fields`; the mean over pairs.
    fields: (name, ((modality, alpha), ...)) each: sides made of several modalities; a
      row that lacks one of them is left out.
    grade: the key of the grades, 0 .. top; negative ones count as 0.
    weight: f(s) is 1 ("constant"), s / top ("linear"), 1 / (top + 1 - s) ("inverse",
      of the rank if s counts down from it), or log(1 + s) / log(1 + top) ("log").
    top: the greatest grade.
    normalise: divide by the sum of "weights", or by the number of "rows".
    query: the key of i32[b], rows of the same query, which are no negatives of each
      other; "": all other rows are.
    temperature: at the start, or for good if not learned; divides cosine similarities.
    learned: whether the temperature is a parameter.
    max_scale: upper bound of 1 / temperature.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("text", "image"),)
  fields: tuple[Field, ...] = ()
  grade: str = "grade"
  weight: str = "linear"
  top: float = 100.0
  normalise: str = "weights"
  query: str = ""
  temperature: float = 0.07
  learned: bool = True
  max_scale: float = 100.0
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    scaling.check(self.temperature, self.max_scale)
    if self.weight not in KINDS or self.normalise not in ("weights", "rows"):
      raise ValueError(
        f"weight = {self.weight!r} must be one of {KINDS}, and "
        f"normalise = {self.normalise!r} 'weights' or 'rows'"
      )
    if not self.top > 0:
      raise ValueError(f"top = {self.top} must be above 0")

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the keys of the batch that the loss needs."""
    return tuple(k for k in (self.grade, self.query) if k)

  @property
  def modalities(self) -> tuple[str, ...]:
    """Returns the modalities of all pairs, those of their fields in place of them."""
    return self._parts(*(m for pair in self.pairs for m in pair))

  def _parts(self, *names: str) -> tuple[str, ...]:
    """Returns the modalities that the names are of, or are made of."""
    parts = dict(self.fields)
    return tuple({m: None for n in names for m, _ in parts.get(n, ((n, 1.0),))})

  def init(self, key: Array) -> Params:
    """Returns {"log_scale": f32[]}, or {} if the temperature is fixed."""
    del key
    return scaling.parameters(self.temperature, self.learned)

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); weighted mean of rows.

    Raises:
      ValueError: the batch lacks a key of `reads`.
    """
    for key in self.reads:
      if key not in batch:
        raise ValueError(f"loss 'gcl' reads batch[{key!r}]; got {sorted(batch)}")
    scale = scaling.inverse(params, self.temperature, self.max_scale)
    metrics = {"gcl/temperature": 1 / scale}
    sides = dict(z) | {name: fused(z, parts) for name, parts in self.fields}
    terms = []
    for a, b in self.pairs:
      x, y = sides[a], sides[b]
      valid = pairing.valid_rows(batch, x.shape[0], *self._parts(a, b))
      w = jnp.where(valid, self.weights(batch[self.grade]), 0.0)
      size = jnp.sum(w if self.normalise == "weights" else valid.astype(jnp.float32))
      similarity = pairing.positive(x, y)
      marks = (batch[self.query],) * 2 if self.query else "diagonal"
      others = reduce.symmetric_logsumexp(
        x, y, scale, valid=valid, exclude=marks, strategy=self.strategy, tile=self.tile
      )
      for u, v, far in ((a, b, others[0]), (b, a, others[1])):
        own = scale * similarity
        each = jnp.where(valid, pairing.log_total(far, own) - own, 0.0)
        term = jnp.sum(w * each) / jnp.where(size > 0, size, 1.0)
        metrics[f"gcl/{u}_to_{v}"] = term
        terms.append(term)
      metrics[f"gcl/positive_{a}_{b}"] = pairing.masked_mean(similarity, valid)
      metrics["gcl/weight"] = pairing.masked_mean(w, valid)
    return jnp.mean(jnp.stack(terms)), metrics

  def weights(self, grade: Array) -> Array:
    """Returns f32[b], at least 0, of grades [b]."""
    s = jnp.clip(grade.astype(jnp.float32), 0.0, self.top)
    if self.weight == "linear":
      return s / self.top
    if self.weight == "inverse":
      return 1 / (self.top + 1 - s)
    if self.weight == "log":
      return jnp.log1p(s) / jnp.log1p(jnp.float32(self.top))
    return jnp.ones_like(s)


def fused(z: dict[str, Array], parts: tuple[tuple[str, float], ...]) -> Array:
  """Returns f32[b, d]: unit(sum of alpha z); zero stays zero."""
  total = sum(alpha * z[m].astype(jnp.float32) for m, alpha in parts)
  square = jnp.sum(total * total, axis=-1, keepdims=True)
  return total * lax.rsqrt(jnp.maximum(square, 1e-12))
