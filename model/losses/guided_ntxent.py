"""NT-Xent with a guide: CLIP can help SimCLR (arXiv 2306.04272).

2b views v, the partner of each the other view of its row;  s = v v^T / t;  g_ij: the
cosine of the same views as a guide, such as a frozen CLIP, encodes them
L = mean_i [log sum_{j != i} exp(s_ij) - s_i,partner(i)]  (model/losses/ntxent.py) and
  add_pos: half of the mean is of a second positive: j of another row with greatest g_ij
  drop_fn: without the negatives of greatest g_ij, which may be false: 5% of each row's
  drop_en: without those of least g_ij, which are easy: 10%
  drop_fp: mean without the rows whose own two views have the least g: 10%

The released code differs where it is not as the paper means: there drop_fp changes
nothing, and the anchor and the partner take places among those that drop_fn drops.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce
from model.types import Array, Batch, Metrics, Params

RATIOS = {"none": 0.0, "add_pos": 0.0, "drop_fn": 0.05, "drop_en": 0.1, "drop_fp": 0.1}
_COLDEST = 0.025  # exp(-2 / t) must not be 0 in f32
_NOTHING = 3.0  # no cosine is above it
_DIGIT = 2048  # four squares of what is below sum to at most 2^24, exact in f32
_ROUNDING = 1e-5  # of a count and of a cosine; 0.05 * 20 is 1, in f32 too


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """Guided NT-Xent over the global batch.

  drop_fn and drop_en keep f32[b, ratio * 2b] scores of the guide; nothing is [b, b].

  Attributes:
    pairs: of views, such as (("image_1", "image_2"),); the loss is the mean over pairs.
    mode: "none" | "add_pos" | "drop_fn" | "drop_en" | "drop_fp".
    ratio: how much of each row's negatives, or of the rows, is dropped; None: as above.
    temperature: t, divides cosine similarities.
    guide: "teacher": z["<view>@teacher"], which the objective's option `teacher` makes;
      else the key of the batch that holds features of each example, f32[b, d2].
    label: a key of the batch, i32[b]: metrics tell how many of the second positives are
      of another, labels being below 4 million; "": they do not.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  mode: str = "add_pos"
  ratio: float | None = None
  temperature: float = 0.1
  guide: str = "teacher"
  label: str = ""
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    if self.mode not in RATIOS:
      raise ValueError(f"mode = {self.mode!r} must be one of {tuple(RATIOS)}")
    if self.ratio is not None and not 0 <= self.ratio < 1:
      raise ValueError(f"ratio = {self.ratio} must be in [0, 1)")
    if not self.temperature >= _COLDEST:
      raise ValueError(f"temperature = {self.temperature} must be at least {_COLDEST}")

  @property
  def teachers(self) -> tuple[str, ...]:
    """Returns what is read of z without gradient."""
    views = dict.fromkeys(m for pair in self.pairs for m in pair)
    return tuple(f"{m}@teacher" for m in views) if self._of_teacher else ()

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the keys of the batch that are read, other than modalities."""
    guide = () if self.mode == "none" or self._of_teacher else (self.guide,)
    return (*guide, self.label) if self.label else guide

  def init(self, key: Array) -> Params:
    """Returns {}: nothing is learned."""
    del key
    return {}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {view: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows."""
    del params
    scale = 1 / self.temperature
    metrics: Metrics = {}
    terms = []
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      similarity = pairing.positive(z[a], z[b])
      for x, y in ((a, b), (b, a)):
        g: Any = None if self.mode == "none" else self._guides(x, y, z, batch)
        lse = self._denominator(z[x], z[y], g, valid)
        target, counted = scale * similarity, valid
        if self.mode == "add_pos":
          second, wrong = self._second(z[x], z[y], g, valid, batch)
          target = jnp.where(jnp.isneginf(second), target, (target + second) / 2)
          if self.label:
            metrics[f"guided_ntxent/labelling_error_{x}"] = wrong
        elif self.mode == "drop_fp":
          counted = self._sure(pairing.positive(*g), valid)
        term = pairing.masked_mean(lse - target, counted)
        metrics[f"guided_ntxent/{x}_to_{y}"] = term
        terms.append(term)
      metrics[f"guided_ntxent/positive_{a}_{b}"] = pairing.masked_mean(
        similarity, valid
      )
    return jnp.mean(jnp.stack(terms)), metrics

  @property
  def _of_teacher(self) -> bool:
    return self.mode != "none" and self.guide == "teacher"

  @property
  def _how(self) -> dict[str, Any]:
    return dict(strategy=self.strategy, tile=self.tile)

  @property
  def _ratio(self) -> float:
    return RATIOS[self.mode] if self.ratio is None else self.ratio

  def _guides(self, x: str, y: str, z, batch: Batch) -> tuple[Array, Array]:
    """Returns what the guide sees in both views, f32[b, d2] at unit norm."""
    if self._of_teacher:
      seen = z[f"{x}@teacher"], z[f"{y}@teacher"]
    else:
      seen = batch[self.guide], batch[self.guide]
    first, second = (_unit(jax.lax.stop_gradient(g).astype(jnp.float32)) for g in seen)
    return first, second

  def _denominator(self, x: Array, y: Array, g: Any, valid: Array) -> Array:
    """Returns f32[b]: log sum of exp(s) over the partner and the negatives kept."""
    scale = 1 / self.temperature
    if self.mode not in ("drop_fn", "drop_en"):
      how = dict(self._how, valid=valid)
      across = reduce.row_logsumexp(x, y, scale, **how)
      own = reduce.row_logsumexp(x, x, scale, exclude="diagonal", **how)
      return pairing.log_total(across, own)
    limit, seen = self._limit(g[0], g[1], valid)
    # The guide's score less the row's limit is one more product of two vectors.
    row = jnp.concatenate([seen, -limit[:, None]], axis=1)
    total = jnp.zeros_like(limit)
    for other, side, fn in ((y, g[1], _across), (x, g[0], _own)):
      col = jnp.concatenate([side, jnp.ones_like(limit)[:, None]], axis=1)
      # Scores are at most 1 / t, which is taken off: sums of exp stay within f32.
      total += reduce.pair_sum(
        fn, x, other, scale, bias=-scale, given=(row, col), valid=valid, **self._how
      )
    return scale + jnp.log(jnp.where(valid, total, 1.0))

  def _limit(self, g: Array, h: Array, valid: Array) -> tuple[Array, Array]:
    """Returns f32[b] and g f32[b, d2], negated if the least alike are to be dropped.

    A negative of row i, seen as k, is dropped where g_i . k is above the limit of i.
    """
    seen = g if self.mode == "drop_fn" else -g
    most = math.floor(self._ratio * (2 * g.shape[0] - 2) + _ROUNDING)
    how = dict(self._how, valid=valid, exclude="diagonal")
    sides = [reduce.row_top_k(seen, side, most + 1, **how)[0] for side in (g, h)]
    best = jax.lax.top_k(jnp.concatenate(sides, axis=1), most + 1)[0]
    negatives = 2 * jnp.sum(valid.astype(jnp.float32)) - 2
    count = jnp.floor(self._ratio * negatives + _ROUNDING).astype(jnp.int32)
    count = jnp.clip(count, 0, most)
    # Halfway between the last that is dropped and the first that stays: rounding, which
    # differs between products of another shape, moves neither across.
    last = jnp.take(best, jnp.maximum(count - 1, 0), axis=1)
    limit = (last + jnp.take(best, count, axis=1)) / 2
    return jnp.where((count > 0) & jnp.isfinite(limit), limit, _NOTHING), seen

  def _second(self, x, y, g, valid, batch) -> tuple[Array, Array]:
    """Returns the scores f32[b] of second positives, -inf if none; and how many err."""
    how = dict(self._how, valid=valid)
    (own, own_at), (across, across_at) = (
      reduce.row_top_k(g[0], side, 1, exclude="diagonal", **how) for side in g
    )
    own, across = own[:, 0], across[:, 0]
    within = own >= across - _ROUNDING  # features of the batch: always equal
    places = jnp.arange(own.shape[0], dtype=jnp.int32)
    label = batch[self.label] if self.label else jnp.zeros_like(places)
    score, errs = jnp.zeros_like(own), jnp.zeros_like(own)
    # Scored once more rather than looked up, which would gather a whole side.
    for other, taken, at in ((x, within, own_at), (y, ~within, across_at)):
      found = (jnp.where(taken, at[:, 0], -1), places)
      more = reduce.pair_sum(
        _chosen,
        x,
        other,
        1 / self.temperature,
        positive=found,
        given=_apart(label),
        **how,
      )
      score, errs = score + more[0], errs + more[1]
    some = ~jnp.isneginf(jnp.maximum(own, across))
    wrong = pairing.masked_mean(errs, valid & some & (label >= 0))
    return jnp.where(some, score, -jnp.inf), wrong

  def _sure(self, similarity: Array, valid: Array) -> Array:
    """Returns bool[b]: valid rows but for those of least similarity."""
    one = jnp.ones_like(similarity)
    rank = reduce.pair_sum(
      _is_less,
      jnp.stack([one, -similarity], axis=1),
      jnp.stack([similarity, one], axis=1),
      1.0,
      valid=valid,
      **self._how,
    )
    rows = jnp.sum(valid.astype(jnp.float32))
    return valid & (rank >= jnp.floor(self._ratio * rows + _ROUNDING))


def _apart(label: Array) -> tuple[Array, Array]:
  """Returns f32[b, 6] twice; the products are 0 for equal labels, else 1 or more.

  They are sum_d (d_i - d_j)^2 over two digits of the label, below 2048 each: exact.
  """
  row, col = [], []
  for digit in (label // _DIGIT, label % _DIGIT):
    d = digit.astype(jnp.float32)
    one = jnp.ones_like(d)
    row += [d * d, -2 * d, one]
    col += [one, d, d * d]
  return jnp.stack(row, 1), jnp.stack(col, 1)


def _chosen(s: Array, chosen: Array, apart: Array) -> tuple[Array, Array]:
  return jnp.where(chosen, s, 0.0), jnp.where(chosen & (apart > 0.5), 1.0, 0.0)


def _is_less(s: Array, own: Array) -> Array:
  return jnp.where(~own & (s < 0), 1.0, 0.0)


def _across(s: Array, partner: Array, beyond: Array) -> Array:
  return jnp.where(partner | (beyond <= 0), jnp.exp(s), 0.0)


def _own(s: Array, anchor: Array, beyond: Array) -> Array:
  return jnp.where(~anchor & (beyond <= 0), jnp.exp(s), 0.0)


def _unit(x: Array) -> Array:
  square = jnp.sum(x * x, axis=1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
