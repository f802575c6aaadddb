"""Groups as positives, their descriptions as anchors: CLEF (arXiv 2304.00058), stage 1.

L = -mean_i mean_{p in P(i)} log[exp s_ip / sum_{k != i} exp s_ik]
  - text * mean_i log[exp u_i,g(i) / sum_g exp u_ig],
s = z_a z_a^T / t,  u_ig = z_ai . (z_b of group g) / t

P(i) are the other rows of i's group, a session that was to bring about one behaviour;
of other subjects only, if the subjects are given, so that identity is not what the
positives share. Rows without any are left out of the first mean. The second sum is over
the groups in the batch, not over rows: a group of many rows has one description, which
is the mean of exp u over its rows (all the same, where rows repeat it). The paper does
not say how the text enters stage 1; this is a softmax over descriptions.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce
from model.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """CLEF's first stage over the global batch.

  Attributes:
    pairs: of modalities, (face, description); the loss is the mean over pairs.
    group: the batch's i32[b] of activities; rows of -1, unlabelled, are left out.
    subject: the batch's i32[b] of people, whose own rows are no positives, likewise;
      None: all of the group are.
    text: weight of the second term.
    temperature: t, fixed.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  group: str = "label"
  subject: str | None = None
  text: float = 1.0
  temperature: float = 0.07
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    if not self.temperature > 0:
      raise ValueError(f"temperature = {self.temperature} must be above 0")

  @property
  def reads(self) -> tuple[str, ...]:
    """The keys of the batch, besides modalities, that the loss needs."""
    return (self.group, *((self.subject,) if self.subject else ()))

  def init(self, key: Array) -> Params:
    """Returns {}: the temperature is fixed."""
    del key
    return {}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows.

    Raises:
      ValueError: a batch without the groups or the subjects.
    """
    del params
    for key in self.reads:
      if key not in batch:
        raise ValueError(
          f"the batch has no {key!r} (group or subject of clef), only {sorted(batch)}"
        )
    metrics: Metrics = {}
    terms = []
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      for key in self.reads:  # -1 is no group: its rows have nothing in common
        valid &= batch[key] >= 0
      faces, share = self._faces(z[a], batch, valid)
      anchors = self._anchors(z[a], z[b], batch[self.group], valid)
      terms.append(faces + self.text * anchors)
      metrics |= {
        f"clef/{a}": faces,
        f"clef/{a}_to_{b}": anchors,
        f"clef/with_positive_{a}": share,
      }
    return jnp.mean(jnp.stack(terms)), metrics

  def _faces(self, z: Array, batch: Batch, valid: Array) -> tuple[Array, Array]:
    """Returns f32[]: the first term, and the share of rows that have a positive."""
    how: dict[str, Any] = dict(valid=valid, strategy=self.strategy, tile=self.tile)
    group, alike = batch[self.group], None
    if self.subject is not None:
      alike = _joint(group, batch[self.subject])
    # Those of the group, less itself or those of the group and the subject.
    total, count = self._of_mark(z, group, how)
    less, fewer = self._of_mark(z, alike, how)
    total, count = total - less, count - fewer
    lse = reduce.row_logsumexp(z, z, 1 / self.temperature, exclude="diagonal", **how)
    some = valid & (count > 0)
    each = jnp.where(some, lse - total / jnp.maximum(count, 1.0), 0.0)
    return pairing.masked_mean(each, some), pairing.masked_mean(
      some.astype(jnp.float32), valid
    )

  def _anchors(self, x: Array, y: Array, group: Array, valid: Array) -> Array:
    """Returns f32[]: the second term, of rows x [b, d] and descriptions y [b, d]."""
    how: dict[str, Any] = dict(valid=valid, strategy=self.strategy, tile=self.tile)
    count = pairing.count_same(group, valid, strategy=self.strategy, tile=self.tile)
    # A column's score less log |its group|: the sum over rows is one over groups.
    weight = -self.temperature * jnp.log(jnp.maximum(count, 1.0))[:, None]
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    rows = jnp.concatenate([x, jnp.ones_like(weight)], axis=1)
    cols = jnp.concatenate([y, weight], axis=1)
    every = reduce.row_logsumexp(rows, cols, 1 / self.temperature, **how)
    own = reduce.row_logsumexp(
      rows, cols, 1 / self.temperature, only=(group, group), **how
    )
    return pairing.masked_mean(jnp.where(valid, every - own, 0.0), valid)

  def _of_mark(self, z: Array, mark: Array | None, how: dict) -> tuple[Array, Array]:
    """Returns f32[b]: the sum of s_ij over columns of i's mark, and how many."""
    marks = "diagonal" if mark is None else (mark, mark)
    return reduce.pair_sum(_same, z, z, 1 / self.temperature, positive=marks, **how)


def _same(s: Array, same: Array) -> tuple[Array, Array]:
  return jnp.where(same, s, 0.0), same.astype(jnp.float32)


def _joint(first: Array, second: Array) -> Array:
  """Returns i32[b]: equal where both i32[b] are."""
  both = jnp.stack([first, second.astype(first.dtype)], axis=1)
  _, mark = jnp.unique(both, axis=0, return_inverse=True, size=both.shape[0])
  return mark.reshape(-1).astype(jnp.int32)
