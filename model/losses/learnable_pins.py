"""Margin loss with a curriculum of negatives: Learnable PINs (arXiv 1805.00833).

L = mean_i D_ii^2 + mean_{(i, j) chosen} max(0, margin - D_ij)^2,  D_ij = ||a_i - b_j||

For each row of a, the rows of b are ranked from far (easy) to near (hard). Walking down
the first `hardness` of that ranking, all that are passed before the row's own positive
is met are chosen: what is nearer than the positive (often the same person in another
track) never is. Rows of equal batch["id"] are one track: none is a negative of another,
and the walk ends at the farthest. Ranks need the [b, b] distances.
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from model.losses import distance, reductions
from model.losses import pairs as pairing
from model.types import Array, Batch, Metrics, Params

_NEAREST = 1e-12  # squared; the root has no slope below


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """Learnable PINs' loss over the global batch; from the first of a pair only.

  Attributes:
    pairs: of modalities, (face, voice); the loss is the mean over pairs.
    margin: beyond which a negative costs nothing.
    hardness: share of the ranking that may be chosen. The paper's schedule raises it
      from 0.3 by 0.1 up to 0.8 during training.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  margin: float = 0.6
  hardness: float = 0.3

  def __post_init__(self):
    pairing.check(self.pairs)
    if not self.margin > 0:
      raise ValueError(f"margin = {self.margin} must be above 0")
    if not 0 <= self.hardness <= 1:
      raise ValueError(f"hardness = {self.hardness} must be in [0, 1]")

  def init(self, key: Array) -> Params:
    """Returns {}: nothing is learned."""
    del key
    return {}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); over valid rows.

    Rows without batch["id"] are a track each.
    """
    del params
    metrics: Metrics = {}
    terms = []
    for a, b in self.pairs:
      rows = z[a].shape[0]
      valid = pairing.valid_rows(batch, rows, a, b)
      track = batch.get("id", jnp.arange(rows, dtype=jnp.int32))
      square = -reductions.dot(*distance.lifted(z[a], z[b]), (1, 1))
      d = jnp.sqrt(jnp.maximum(square, _NEAREST))
      chosen = negatives(
        lax.stop_gradient(d), track[:, None] == track[None, :], valid, self.hardness
      )
      count = jnp.sum(chosen.astype(jnp.float32))
      short = jnp.where(chosen, jnp.square(jnp.maximum(self.margin - d, 0.0)), 0.0)
      pull = pairing.masked_mean(distance.squared(z[a], z[b]), valid)
      push = jnp.sum(short) / jnp.maximum(count, 1.0)
      terms.append(pull + push)
      metrics |= {
        f"learnable_pins/positive_{a}_{b}": pull,
        f"learnable_pins/negative_{a}_{b}": push,
        f"learnable_pins/chosen_{a}_{b}": pairing.masked_mean(
          jnp.sum(chosen.astype(jnp.float32), axis=1), valid
        ),
      }
    return jnp.mean(jnp.stack(terms)), metrics


def negatives(d: Array, same: Array, valid: Array, hardness: float) -> Array:
  """Returns bool[b, b]: the columns chosen for each row.

  Those among the first floor(hardness * n) of the n valid columns by falling distance
  (all of equal distance with the last of them) that are farther than every positive.

  Args:
    d: f32[b, b], distances.
    same: bool[b, b], True on the diagonal and within a track.
    valid: bool[b], of rows and columns.
    hardness: in [0, 1].
  """
  far = jnp.where(valid[None, :], d, -jnp.inf)
  own = jnp.max(jnp.where(same, far, -jnp.inf), axis=1, keepdims=True)
  # 0.3 * 10 is above 3 in binary, 0.7 * 10 below 7: both are meant whole.
  first = jnp.floor(hardness * jnp.sum(valid.astype(jnp.float32)) + 1e-3)
  ranked = -jnp.sort(-far, axis=1)
  last = jnp.maximum(first.astype(jnp.int32) - 1, 0)
  least = jax.lax.dynamic_slice_in_dim(ranked, last, 1, axis=1)
  chosen = (far > own) & (far >= least) & (first >= 1)
  return chosen & ~same & valid[:, None] & valid[None, :]
