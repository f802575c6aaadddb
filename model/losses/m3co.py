"""Mixup contrastive loss: M3Co (arXiv 2409.17777).

a~_i = share_i a_i + (1 - share_i) a_k(i) is a mixture of two rows, b_i one row;
s_ij = a~_i . b_j / t,  P_ii = share_i,  P_ik(i) = 1 - share_i, else 0
L = -1/2b sum_ij P_ij log softmax_j(s_ij) - 1/2b sum_ij P_ij log softmax_i(s_ij)

The mixture is as near to each of its rows as it has of them. A row mixed with itself
(k(i) = i) is whole: P_ii = 1, where the released code leaves 1 - share. As P has two
entries in a row, all is made of rows and of partners of rows, and nothing is [b, b]:
sum_ij P_ij x_j = sum_i share_i x_i + (1 - share_i) x_k(i).

The view "mix" mixes and says with what; the objective "mixup" goes on to soft targets,
which are `cwcl` with an exponential kernel.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import permute, reduce
from model.losses import scale as scaling
from model.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """M3Co, both directions, over the global batch.

  Reads of each mixed side a: batch["<a>_partner"] i32[b], k(i) or -1 for a row that is
  not mixed, and batch["<a>_share"] f32[b], how much of the row itself there is. Rows
  whose partner is not valid count as whole.

  Attributes:
    pairs: (mixed, not mixed) each; the loss is the mean over pairs.
    temperature: at the start, or for good if not learned; divides cosine similarities.
    learned: whether the temperature is a parameter; the paper keeps it fixed.
    max_scale: upper bound of 1 / temperature.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image_mixed", "text"), ("text_mixed", "image"))
  temperature: float = 0.1
  learned: bool = False
  max_scale: float = 100.0
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    scaling.check(self.temperature, self.max_scale)

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the keys that say what was mixed with what."""
    return tuple(f"{a}_{key}" for a, _ in self.pairs for key in ("partner", "share"))

  def init(self, key: Array) -> Params:
    """Returns {}, or {"log_scale": f32[]} if the temperature is learned."""
    del key
    return scaling.parameters(self.temperature, self.learned)

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {name: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows.

    Raises:
      ValueError: the batch does not say what was mixed.
    """
    scale = scaling.inverse(params, self.temperature, self.max_scale)
    metrics = {"m3co/temperature": 1 / scale}
    terms = []
    for a, b in self.pairs:
      x, y = z[a], z[b]
      valid = pairing.valid_rows(batch, x.shape[0], a, b)
      partner, share = _mixture(batch, a, valid)
      how: dict[str, Any] = dict(valid=valid, strategy=self.strategy, tile=self.tile)
      partners = permute.take(y, partner, strategy=self.strategy)
      rows, cols = reduce.symmetric_logsumexp(x, y, scale, **how)
      own, other = pairing.positive(x, y), pairing.positive(x, partners)
      target = scale * (share * own + (1 - share) * other)
      # -inf where no row is valid, and nothing counts.
      cols = jnp.where(valid, cols, 0.0)
      cols = share * cols + (1 - share) * cols[partner]
      for name, lse in ((f"{a}_to_{b}", rows), (f"{b}_to_{a}", cols)):
        term = pairing.masked_mean(lse - target, valid)
        metrics[f"m3co/{name}"] = term
        terms.append(term)
      metrics[f"m3co/share_{a}"] = pairing.masked_mean(share, valid)
    return jnp.mean(jnp.stack(terms)), metrics


def _mixture(batch: Batch, name: str, valid: Array) -> tuple[Array, Array]:
  """Returns k(i) i32[b], the row itself for one that is whole, and share f32[b]."""
  keys = (f"{name}_partner", f"{name}_share")
  for key in keys:
    if key not in batch:
      raise ValueError(
        f"m3co reads batch[{key!r}]: what was mixed into {name!r}. Set "
        'config.objective.name = "mixup", whose names of mixtures are <modality>_mixed'
      )
  partner, share = (batch[key] for key in keys)
  own = jnp.arange(partner.shape[0], dtype=partner.dtype)
  mixed = (partner >= 0) & (partner != own) & jnp.take(valid, jnp.maximum(partner, 0))
  return jnp.where(mixed, partner, own), jnp.where(mixed, share, 1.0)
