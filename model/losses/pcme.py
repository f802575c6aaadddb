"""Soft contrastive loss of Gaussians: PCME (arXiv 2101.05068, eq. 2, 3 and 5).

z_ik: draws k = 1..J of the embedding of row i;  s_ikjr = c - t ||z_ik - z'_jr||
P_ij = 1/J^2 sum_kr exp(s_ikjr) / (exp(s_ikjr) + exp(-s_ikjr))
L = 1/b sum_ij [-log P_ij if i and j match, else -log(1 - P_ij)]
  + vib * mean_m 1/b sum_i KL(N(mu_i, sigma_i^2) || N(0, 1))

As in the released code the sums are not divided by the number of pairs, and matter as
1 to vib; distances do not differ between directions, so one stands for both. What
differs: the divergence is of the distribution itself (the released code takes the mean
of the draws, and reads one output as log sigma here and as log sigma^2 there), and t is
kept positive. The J x J draws of a pair are compared tile by tile: see `reduce`.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from model.losses import distance, reduce, sets
from model.losses import pairs as pairing
from model.losses import scale as scaling
from model.losses.siglip import pair_loss
from model.types import Array, Batch, Encoded, Metrics, Params

POSITIVES = ("rows", "ids")
_NEAR = 1e-3  # added to a distance, squared: it has a slope everywhere


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """PCME over the global batch; the head "probabilistic" makes what it reads.

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    scale: t at the start; learned.
    shift: c at the start; learned.
    max_scale: upper bound of t; the paper has none.
    vib: weight of the divergence from a standard normal distribution, which keeps
      variances from vanishing.
    uniformity: weight of log mean exp(-2 ||z - z'||^2) over the draws of both sides;
      goes through (2 b J)^2 pairs.
    positives: what matches a row: itself ("rows"), or all of its batch["id"] ("ids").
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  tokens: ClassVar[bool] = True
  fields: ClassVar[tuple[str, ...]] = ("pooled", "tokens", "log_var")

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  scale: float = 15.0
  shift: float = 15.0
  max_scale: float = 1000.0
  vib: float = 1e-5
  uniformity: float = 0.0
  positives: str = "rows"
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    if not 0 < self.scale <= self.max_scale:
      raise ValueError(
        f"scale = {self.scale} must be above 0, at most max_scale = {self.max_scale}"
      )
    if self.positives not in POSITIVES:
      raise ValueError(f"positives = {self.positives!r} must be one of {POSITIVES}")

  def init(self, key: Array) -> Params:
    """Returns {"log_scale": f32[], "shift": f32[]}."""
    del key
    return {"log_scale": scaling.initial(self.scale), "shift": jnp.float32(self.shift)}

  def __call__(
    self, params: Params, z: Mapping[str, Encoded], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: Encoded} -> (f32[], metrics); per valid row.

    Of each, `tokens` [b, J, d] are the draws, `pooled` [b, d] and `log_var` [b, d] the
    distribution.

    Raises:
      ValueError: a modality without draws or distribution.
    """
    scale = scaling.positive(params["log_scale"], self.max_scale)
    metrics = {"pcme/scale": scale, "pcme/shift": params["shift"]}
    terms = []
    for a, b in self.pairs:
      read = {m: _read(m, z[m]) for m in (a, b)}
      valid = pairing.valid_rows(batch, z[a].pooled.shape[0], a, b)
      how: dict[str, Any] = dict(valid=valid, strategy=self.strategy, tile=self.tile)
      draws = [_kept(draws, valid) for draws, _ in read.values()]
      x, y = _samples(draws, scale, params["shift"])
      marks = "diagonal" if self.positives == "rows" else (pairing.ids(batch),) * 2
      rows = reduce.pair_sum(pair_loss, x, y, 1.0, positive=marks, **how)
      term = pairing.masked_mean(rows, valid)
      metrics[f"pcme/{a}_{b}"] = term
      own = jax.nn.sigmoid(sets.alone(x, y))
      metrics[f"pcme/match_{a}_{b}"] = pairing.masked_mean(own, valid)
      for m, (_, log_var) in read.items():
        kl, spread = _distribution(z[m].pooled, log_var, valid)
        metrics |= {f"pcme/kl_{m}": kl, f"pcme/std_{m}": spread}
        term += self.vib / 2 * kl
      if self.uniformity:
        term += self.uniformity * _uniformity(draws, how)
      terms.append(term)
    return jnp.mean(jnp.stack(terms)), metrics


def _read(modality: str, encoded: Encoded) -> tuple[Array, Array]:
  """Returns the draws [b, J, d] and the log-variance [b, d]."""
  if encoded.tokens is None or encoded.log_var is None:
    raise ValueError(
      f"pcme compares draws of a distribution; {modality!r} has none: name "
      '"probabilistic" in config.objective.options.heads'
    )
  return encoded.tokens, encoded.log_var


def _kept(x: Array, valid: Array) -> Array:
  """Returns x f32[b, ...], 0 in rows that are not valid: those may hold anything."""
  keep = valid.reshape(-1, *(1,) * (x.ndim - 1))
  return jnp.where(keep, x.astype(jnp.float32), 0.0)


def _samples(draws: list[Array], scale: Array, shift: Array) -> list[sets.Samples]:
  """Returns both sides, such that s_ikjr is the sum of shifts less the distance."""
  out = []
  for x, near in zip(draws, (_NEAR, 0.0)):
    # One coordinate more, in which the sides differ by _NEAR.
    x = jnp.pad(x, [(0, 0), (0, 0), (0, 1)], constant_values=near)
    half = jnp.broadcast_to(shift / 2, x.shape[:2])
    out.append(sets.Samples(scale * x, half))
  return out


def _distribution(mean: Array, log_var: Array, valid: Array) -> tuple[Array, Array]:
  """Returns the mean divergence from N(0, 1), summed over d, and the mean sigma."""
  mean, log_var = _kept(mean, valid), _kept(log_var, valid)
  kl = jnp.sum(jnp.exp(log_var) + mean * mean - 1 - log_var, axis=-1) / 2
  spread = jnp.mean(jnp.exp(log_var / 2), axis=-1)
  return pairing.masked_mean(kl, valid), pairing.masked_mean(spread, valid)


def _uniformity(draws: list[Array], how: dict[str, Any]) -> Array:
  """Returns f32[]: of all draws of both sides."""
  x = jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in draws])
  valid = jnp.concatenate([jnp.repeat(how["valid"], x.shape[1]) for x in draws])
  return distance.uniformity(x, x, 2.0, **(how | {"valid": valid}))
