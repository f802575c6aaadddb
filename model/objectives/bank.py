"""Contrast with a bank that holds one embedding of every example of the data.

row(b) of an example: what its embedding under the name b was, averaged over the times
it was seen;  s_i = z_a . row(b)_i / t
softmax: L = mean_i [log(exp s_ii + sum_{k in K} exp s_ik) - s_ii]
nce:     P = exp(s) / Z;  L = -mean_i [log P_ii / (P_ii + K/n) + sum_k log (K/n) / (P_ik
         + K/n)], Z fixed by the first batch to n * mean exp(s)
and then row <- normalize(m * row + (1 - m) * z).

Instance discrimination (arXiv 1805.01978) with one name, contrastive multiview coding
(CMC, arXiv 1906.05849, section 3.4) with two or more. Differences: K negatives are
drawn once for the batch, in the code of CMC anew for each row, which holds [b, K, d];
none of them is the example's own row; the loss is the mean over directions, there the
sum.
"""

from collections.abc import Collection
import dataclasses
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from model import catalogue
from model.losses import pairs as pairing
from model.losses import reduce
from model.objectives import memory, parts
from model.objectives.parts import HEADS
from model.types import Array, Batch, Encode, Metrics, ObjectiveOutput, Params, State

WHERE = "config.objective.options"
LOG_Z = "log_z"  # its place in the state
FORMS = ("nce", "softmax")
EPSILON = 1e-7  # beside K/n, of CMC's code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """Compares each of a pair with the other's rows of the bank; reads batch["id"].

  Rows of the batch whose id is not in [0, rows) have no place in the bank: they do not
  count, and metrics["bank/outside"] is their share.

  Attributes:
    rows: n, of the bank: more than every id of the data. Rows of ids that there are not
      stay as they were drawn, negatives like others.
    pairs: of views or modalities; the loss is the mean over pairs and directions. All
      pairs are CMC's full graph, all with one of them its core view. A name with itself
      is instance discrimination.
    form: "nce" | "softmax".
    drawn: K, negatives drawn for a step; 0: all other rows of the bank.
    temperature: divides cosine similarities; fixed.
    momentum: m, the share of the old row.
    views: (modality, names, ((a file of model/views/, options), ...)) each.
    heads: (names, a file of model/heads/, options) each, before normalising.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.

  Raises:
    ValueError: options out of their range, unknown views or heads.
  """

  rows: int
  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  form: str = "nce"
  drawn: int = 0
  temperature: float = 0.07
  momentum: float = 0.5
  # Options come as dicts, which have no hash; what they build stands for them.
  views: tuple[Any, ...] = dataclasses.field(default=(), compare=False)
  heads: tuple[Any, ...] = dataclasses.field(default=(), compare=False)
  strategy: str = "auto"
  tile: int | None = None
  seen: tuple[parts.Views, ...] = dataclasses.field(init=False, repr=False)
  topped: parts.Heads = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    pairing.check(self.pairs)
    if self.form not in FORMS:
      raise ValueError(f"{WHERE}.form = {self.form!r} must be one of {FORMS}")
    if self.rows < 2 or self.drawn < 0:
      raise ValueError(
        f"{WHERE}: rows = {self.rows} must be at least 2, more than every id of the "
        f"data, and drawn = {self.drawn} at least 0"
      )
    if self.temperature <= 0 or not 0 <= self.momentum < 1:
      raise ValueError(
        f"{WHERE}: temperature = {self.temperature} must be over 0, and momentum = "
        f"{self.momentum} in [0, 1)"
      )
    object.__setattr__(self, "seen", parts.build_views(self.views))
    object.__setattr__(self, "topped", parts.Heads(self.heads))

  def init(self, key: Array, towers: Any, batch_spec: Batch) -> tuple[Params, State]:
    """Returns ({"heads": ...}, {"bank": {name: a bank}, "log_z": {direction: f32[]}}).

    Raises:
      ValueError: a pair, view or head of what batch_spec does not have.
    """
    self._check(parts.view_names(batch_spec, self.seen))
    spec = parts.spec(towers, batch_spec, self.seen)
    params: dict[str, Any] = {}
    if self.topped:
      params[HEADS] = self.topped.init(jax.random.fold_in(key, 1), spec)
      spec = self.topped.spec(params[HEADS], spec)
    banks = {}
    for i, name in enumerate(self._names()):
      own = jax.random.fold_in(key, i + 2)
      banks[name] = memory.bank(own, self.rows, spec[name].pooled.shape[-1])
    state: dict[str, Any] = {memory.BANK: banks}
    if self.form == "nce":  # -inf: not known yet
      state[LOG_Z] = {_to(*d): jnp.float32(-jnp.inf) for d in self._directions()}
    return params, state

  def __call__(
    self,
    params: Params,
    state: State,
    encode: Encode,
    batch: Batch,
    key: Array,
    step: Array,
  ) -> ObjectiveOutput:
    """Encodes, compares with the bank, and only then writes to it.

    Raises:
      ValueError: a pair names what the batch does not have, or there is no "id".
    """
    del step
    look, top = jax.random.split(key)  # as other objectives do: the same views
    names = self._names()
    encoded = parts.encode_views(encode, batch, self.seen, look, names=names)
    self._check(encoded)
    batch = parts.marked(batch, self.seen)
    encoded = self.topped(params.get(HEADS, {}), encoded, top, True, batch)
    z = parts.unit(encoded)
    ids = pairing.ids(batch)
    banks = state[memory.BANK]
    rows = pairing.valid_rows(batch, ids.shape[0], *names)
    valid = rows & memory.inside(banks[names[0]], ids)
    outside = pairing.masked_mean((~valid).astype(jnp.float32), rows)
    metrics: Metrics = {"bank/outside": outside}
    # The same for all pairs, as in the paper.
    negatives = jnp.arange(self.rows, dtype=jnp.int32)
    if self.drawn:
      draw = jax.random.fold_in(key, 2)
      negatives = jax.random.randint(draw, (self.drawn,), 0, self.rows, jnp.int32)
    terms, log_z = [], {}
    for a, b in self._directions():
      to = _to(a, b)
      old = state[LOG_Z][to] if self.form == "nce" else None
      term, z_new, near = self._term(z[a], banks[b], ids, negatives, valid, old)
      metrics |= {f"bank/{to}": term, f"bank/positive_{to}": near}
      terms.append(term)
      log_z[to] = z_new
    new: dict[str, Any] = {
      name: memory.blend(banks[name], ids, z[name], valid, self.momentum)
      for name in names
    }
    out = {memory.BANK: new} | ({LOG_Z: log_z} if self.form == "nce" else {})
    return ObjectiveOutput(jnp.mean(jnp.stack(terms)), metrics, out)

  def _term(
    self,
    z: Array,
    held: State,
    ids: Array,
    negatives: Array,
    valid: Array,
    log_z: Array | None,
  ) -> tuple[Array, Array | None, Array]:
    """Returns (loss, log Z, mean positive similarity) of z f32[b, d] with one bank."""
    scale, count = 1 / self.temperature, self.drawn or self.rows - 1
    columns = memory.read(held, negatives) if self.drawn else held["rows"]
    columns = lax.stop_gradient(columns)
    similarity = pairing.positive(z, memory.read(held, ids))
    own = scale * similarity
    marks = ids, negatives
    how: dict[str, Any] = dict(strategy=self.strategy, tile=self.tile)

    def total(own, z):
      others = reduce.row_logsumexp(z, columns, scale, exclude=marks, **how)
      return pairing.log_total(own, others)

    if log_z is None:
      rows = total(own, z) - own
    else:
      here = lax.stop_gradient((own, z))
      share = math.log(self.rows) - math.log(count + 1)
      first = lambda: _log_mean(total(*here), valid) + share  # noqa: E731
      log_z = lax.cond(jnp.isfinite(log_z), lambda: log_z, first)
      now = jnp.where(jnp.isfinite(log_z), log_z, 0.0)  # no valid row yet: no matter
      noise = _Noise(count / self.rows)
      rejected = reduce.pair_sum(
        noise, z, columns, scale, positive=marks, bias=-now, **how
      )
      accepted = own - now - jnp.logaddexp(own - now, noise.log_share)
      rows = -accepted - rejected
    mean = pairing.masked_mean
    return mean(rows, valid), log_z, mean(similarity, valid)

  def _directions(self) -> tuple[pairing.Pair, ...]:
    """Returns (embedding, bank) of every term."""
    return tuple(dict.fromkeys(pairing.directions(self.pairs)))

  def _names(self) -> tuple[str, ...]:
    return tuple(dict.fromkeys(m for pair in self.pairs for m in pair))

  def _check(self, present: Collection[str]) -> None:
    for name in self._names():
      if name not in present:
        raise ValueError(
          f"{WHERE}.pairs = {self.pairs} compares {name!r}, which is no modality of "
          f"the batch and no view ({catalogue.near_misses(name, sorted(present))})"
        )


@dataclasses.dataclass(frozen=True)
class _Noise:
  """log (share / (P + share)) of a negative's s = log P; 0 for the positive."""

  share: float

  @property
  def log_share(self) -> Array:
    """Returns f32[]: log share, to be added to P in a denominator."""
    return jnp.float32(math.log(self.share + EPSILON))

  def __call__(self, s: Array, same: Array) -> Array:
    log = math.log(self.share) - jnp.logaddexp(s, self.log_share)
    return jnp.where(same, 0.0, log)


def _log_mean(x: Array, valid: Array) -> Array:
  """Returns f32[]: log mean exp of x f32[b] over the valid rows; -inf without any."""
  count = jnp.sum(valid.astype(jnp.float32))
  total = jax.nn.logsumexp(jnp.where(valid, x, -jnp.inf))
  return total - jnp.log(jnp.maximum(count, 1.0))


def _to(a: str, b: str) -> str:
  return f"{a}_to_{b}"
