"""Mixup of one modality: each example a blend of two (arXiv 1710.09412, 2409.17777).

x~_i = share_i x_i + (1 - share_i) x_k(i),  share_i ~ Beta(beta, beta),  k a permutation

It says what it mixed, so that a loss can ask for both: m3co.
"""

import dataclasses

import jax
import jax.numpy as jnp

from model.types import Array, Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
  """The batch with blends in place of a modality's arrays; padding of neither is kept.

  Writes "<name>_partner" i32[b], k(i), or -1 for an example that is not mixed, and
  "<name>_share" f32[b], 1 for one that is not. Examples that are not valid, or do not
  have the modality, are mixed with none.

  Attributes:
    modality: of arrays that can be blended; ids cannot.
    name: of the mixture; "": <modality>_mixed.
    beta: of the shares: below 1, most are near 0 or 1.
    probability: that an example is mixed.
    group: partners are drawn among so many consecutive rows; 0: among all, for which
      each device has to be sent the arrays of all.
  """

  modality: str = "image"
  name: str = ""
  beta: float = 0.15
  probability: float = 0.5
  group: int = 0

  def __post_init__(self):
    if not (self.beta > 0 and 0 <= self.probability <= 1 and self.group >= 0):
      raise ValueError(
        f"mix has beta = {self.beta}, probability = {self.probability} and group = "
        f"{self.group}; expected beta above 0, a probability, and group of 0 or more"
      )

  def __call__(self, batch: Batch, key: Array) -> Batch:
    """Returns the batch with blends [b, ...] and what they were made of.

    Raises:
      ValueError: a modality of ids, or a batch that groups do not divide.
    """
    rows = batch[self.modality].shape[0]
    valid = jnp.ones(rows, bool)
    for name in ("valid", f"{self.modality}_valid"):
      if name in batch:
        valid &= batch[name]
    return self.apply(batch, *self.draw(key, rows, valid))

  def apply(self, batch: Batch, partner: Array, share: Array) -> Batch:
    """Returns the batch blended by what `draw` returned.

    Raises:
      ValueError: a modality of ids.
    """
    x = batch[self.modality]
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise ValueError(
        f"mix blends arrays; {self.modality!r} is {x.dtype}: ids can be mixed as "
        "embeddings, by the objective mixup without them in its inputs"
      )
    out = {**batch, self.modality: self.blend(x, partner, share)}
    mask = f"{self.modality}_mask"
    if mask in batch:
      real = batch[mask]
      mixed = (partner >= 0).reshape(-1, *(1,) * (real.ndim - 1))
      out[mask] = real | (mixed & self._of_partner(real, partner))
    return out | dict(zip(self.writes, (partner, share)))

  @property
  def writes(self) -> tuple[str, str]:
    """Returns the keys of partner and share."""
    name = self.name or f"{self.modality}_mixed"
    return f"{name}_partner", f"{name}_share"

  def draw(self, key: Array, rows: int, valid: Array) -> tuple[Array, Array]:
    """Returns each row's partner i32[b] and share f32[b], as the class says of them.

    Args:
      key: of the draw.
      rows: b.
      valid: bool[b], the rows that may be mixed, with one another.

    Raises:
      ValueError: a batch that groups do not divide.
    """
    group = self._group(rows)
    keys = jax.random.split(key, 3)
    mixed = jax.random.bernoulli(keys[0], self.probability, (rows,))
    share = jax.random.beta(keys[1], self.beta, self.beta, (rows,))
    index = jnp.arange(rows, dtype=jnp.int32)
    orders = index.reshape(-1, group)
    partner = jax.random.permutation(keys[2], orders, axis=1, independent=True)
    partner = partner.reshape(rows)
    mixed &= (partner != index) & valid & jnp.take(valid, partner)
    return jnp.where(mixed, partner, -1), jnp.where(mixed, share, 1.0)

  def blend(self, x: Array, partner: Array, share: Array) -> Array:
    """Returns [b, ...]: the blends of x [b, ...], in its dtype."""
    share = share.reshape(-1, *(1,) * (x.ndim - 1))
    own, other = (v.astype(jnp.float32) for v in (x, self._of_partner(x, partner)))
    # Not 1 * own + 0 * other where a row is whole: other may hold anything.
    blended = jnp.where(share == 1, own, share * own + (1 - share) * other)
    return blended.astype(x.dtype)

  def _of_partner(self, x: Array, partner: Array) -> Array:
    """Returns x[partner], looked up within each group."""
    group = self._group(x.shape[0])
    place = jnp.maximum(partner, 0).reshape(-1, group) % group
    found = jax.vmap(lambda rows, at: rows[at])(
      x.reshape(-1, group, *x.shape[1:]), place
    )
    return found.reshape(x.shape)

  def _group(self, rows: int) -> int:
    group = self.group or rows
    if rows % group:
      raise ValueError(
        f"batch {rows} is not divisible by group = {group} of mix ({rows} % {group} = "
        f"{rows % group})"
      )
    return group
