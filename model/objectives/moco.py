"""Momentum contrast: keys of the moving average, negatives from a queue of past keys.

q = f(x_a), k = f_ema(x_b), both of unit norm, s = q . k / t, no gradient through k
L = mean_i [log(exp s_ii + sum_{n in queue} exp(q_i . n / t)) - s_ii];  then enqueue k

MoCo (arXiv 1911.05722, eq. 1); a and b are two views of an image (v2: arXiv 2003.04297)
or two modalities (BriVL: arXiv 2103.06561). Without a queue the negatives are the
batch's other keys (v3: arXiv 2104.02057). The average (config.ema; the papers' has no
config.ema_warmup) is updated after a step, which is before the next one's keys, as
there.
"""

from collections.abc import Collection, Iterator, Mapping
import dataclasses
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from model import catalogue
from model.losses import pairs as pairing
from model.losses import reduce
from model.losses import scale as scaling
from model.objectives import memory, parts
from model.objectives.parts import HEADS
from model.types import (
  Array,
  Batch,
  Encode,
  Metrics,
  ObjectiveOutput,
  Params,
  State,
)

WHERE = "config.objective.options"
PREDICTORS = "predictors"  # their place among the parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """MoCo over pairs (query, key) of views or modalities; the mean over them.

  Attributes:
    pairs: (query, key): online embeddings of the first are compared with averaged ones
      of the second.
    symmetric: also the second as query and the first as key.
    temperature: at the start, or for good if not learned; divides cosine similarities.
    learned: whether the temperature is a parameter.
    max_scale: upper bound of 1 / temperature.
    queue: past keys of each key's name, a multiple of the batch; 0: none.
    in_batch: whether the batch's other keys are negatives, too.
    negatives: "rows": all other keys; "ids": only those of another batch["id"]. In a
      small data set the queue holds keys of the very same example.
    hard: of the queue, only so many keys, those most similar to the anchor; 0: all.
      Holds [b, hard, d].
    skip: how many of the most similar ones to leave out before: false negatives?
    key_anchor: weight of the same loss with the key as anchor, whose negatives are in
      the queue of its own name; only its positive reaches the query.
    positives: how many of a queue's keys to look at for further positives: those of the
      same place among the nearest of both sides (BriVL's code); 0: none. Each adds its
      own -log softmax. Holds [b, positives, d].
    views: (modality, names, ((a file of model/views/, options), ...)) each.
    heads: (names, a file of model/heads/, options) each, before normalising; keys have
      the average's.
    predictors: likewise, on top of the heads of queries alone, as in v3.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.

  Raises:
    ValueError: options that do not fit each other, unknown views or heads.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  symmetric: bool = True
  temperature: float = 0.07
  learned: bool = False
  max_scale: float = 100.0
  queue: int = 0
  in_batch: bool = True
  negatives: str = "rows"
  hard: int = 0
  skip: int = 0
  key_anchor: float = 0.0
  positives: int = 0
  # Options come as dicts, which have no hash; what they build stands for them.
  views: tuple[Any, ...] = dataclasses.field(default=(), compare=False)
  heads: tuple[Any, ...] = dataclasses.field(default=(), compare=False)
  predictors: tuple[Any, ...] = dataclasses.field(default=(), compare=False)
  strategy: str = "auto"
  tile: int | None = None
  seen: tuple[parts.Views, ...] = dataclasses.field(init=False, repr=False)
  topped: parts.Heads = dataclasses.field(init=False, repr=False)
  predicting: parts.Heads = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    pairing.check(self.pairs)
    scaling.check(self.temperature, self.max_scale)
    pairing.check_negatives(self.negatives)
    self._check_sources()
    object.__setattr__(self, "seen", parts.build_views(self.views))
    object.__setattr__(self, "topped", parts.Heads(self.heads))
    where = f"{WHERE}.predictors"
    object.__setattr__(self, "predicting", parts.Heads(self.predictors, where=where))

  def _check_sources(self) -> None:
    counts = ("queue", "hard", "skip", "positives")
    for name in counts:
      if getattr(self, name) < 0:
        raise ValueError(f"{WHERE}.{name} = {getattr(self, name)} must be 0 or more")
    if not self.queue and not self.in_batch:
      raise ValueError(
        f"{WHERE}: queue = 0 and in_batch = False leave no negatives. Set queue to a "
        "multiple of config.batch_size, or in_batch to True"
      )
    if self.hard and (self.in_batch or self.hard + self.skip > self.queue):
      raise ValueError(
        f"{WHERE}: hard = {self.hard}, after skip = {self.skip}, are chosen from the "
        f"queue alone; got queue = {self.queue}, in_batch = {self.in_batch}. Set "
        "in_batch to False and queue to at least hard + skip"
      )
    if self.skip and not self.hard:
      raise ValueError(f"{WHERE}: skip = {self.skip} needs hard > 0, what comes after")
    if self.positives and not (self.symmetric and self.positives <= self.queue):
      raise ValueError(
        f"{WHERE}: positives = {self.positives} are looked for in the queues of both "
        f"sides; got queue = {self.queue}, symmetric = {self.symmetric}"
      )

  def init(self, key: Array, towers: Any, batch_spec: Batch) -> tuple[Params, State]:
    """Returns (temperature and heads, {"queue": {name of a key: a queue}}).

    Raises:
      ValueError: a pair, view or head of what batch_spec does not have, or a queue that
        is not a number of whole batches.
    """
    self._check(parts.view_names(batch_spec, self.seen))
    params = dict(scaling.parameters(self.temperature, self.learned))
    if not (self.topped or self.predicting or self.queue):
      return params, {}
    spec = parts.spec(towers, batch_spec, self.seen)
    if self.topped:
      params[HEADS] = self.topped.init(jax.random.fold_in(key, 1), spec)
      spec = self.topped.spec(params[HEADS], spec)
    if self.predicting:
      params[PREDICTORS] = self.predicting.init(jax.random.fold_in(key, 2), spec)
    if not self.queue:
      return params, {}
    shape = {name: spec[name].pooled.shape for name in self._names("keys")}
    queues = {name: memory.queue(self.queue, *shape[name]) for name in shape}
    return params, {memory.QUEUE: queues}

  def __call__(
    self,
    params: Params,
    state: State,
    encode: Encode,
    batch: Batch,
    key: Array,
    step: Array,
  ) -> ObjectiveOutput:
    """Encodes queries online and keys by the average; then enqueues the keys.

    Raises:
      ValueError: there is no average, or a pair names what the batch does not have.
    """
    del step
    look, top = jax.random.split(key)
    q = parts.encode_views(encode, batch, self.seen, look, "online", self._names("q"))
    k = parts.encode_views(encode, batch, self.seen, look, "ema", self._names("keys"))
    self._check({**q, **k})
    batch = parts.marked(batch, self.seen)
    q = self.topped(params.get(HEADS, {}), q, top, True, batch)
    q = self.predicting(params.get(PREDICTORS, {}), q, top, True, batch)
    if self.topped:
      k = self.topped(encode.params("ema").get(HEADS, {}), k, top, False, batch)
    queries, keys = parts.unit(q), lax.stop_gradient(parts.unit(k))
    loss, metrics = self._loss(params, state, queries, keys, batch)
    return ObjectiveOutput(loss, metrics, self._enqueue(state, keys, batch))

  def _loss(
    self,
    params: Params,
    state: State,
    q: Mapping[str, Array],
    k: Mapping[str, Array],
    batch: Batch,
  ) -> tuple[Array, Metrics]:
    """Returns the mean over directions, and metrics; q and k: name -> f32[b, d]."""
    scale = scaling.inverse(params, self.temperature, self.max_scale)
    held = state.get(memory.QUEUE, {})
    metrics = {"moco/temperature": 1 / scale}
    terms = []
    for a, b in self._directions():
      valid = pairing.valid_rows(batch, q[a].shape[0], a, b)
      seen = {**batch, "valid": valid}  # no negative is a modality that is missing
      similarity = pairing.positive(q[a], k[b])
      own = scale * similarity
      queued = memory.columns(held[b]) if held else None
      total = pairing.log_total(own, *self._others(q[a], k[b], queued, scale, seen))
      rows = total - own
      if self.positives and queued is not None:
        both = queued, memory.columns(held[a])
        rows += self._more_positives(q[a], (k[b], k[a]), both, total, scale, batch)
      if self.key_anchor:
        others = self._others(k[b], k[b], queued, scale, seen)
        rows += self.key_anchor * (pairing.log_total(own, *others) - own)
      metrics[f"moco/{a}_to_{b}"] = pairing.masked_mean(rows, valid)
      metrics[f"moco/positive_{a}_{b}"] = pairing.masked_mean(similarity, valid)
      terms.append(metrics[f"moco/{a}_to_{b}"])
    for name, one in held.items():
      metrics[f"moco/queued_{name}"] = jnp.mean(one["valid"].astype(jnp.float32))
    return jnp.mean(jnp.stack(terms)), metrics

  def _others(
    self,
    anchor: Array,
    keys: Array,
    queued: memory.Columns | None,
    scale: Array,
    batch: Batch,
  ) -> Iterator[Array]:
    """Yields f32[b], the logsumexp over negatives, of each of their sources."""
    if self.in_batch:
      valid = pairing.valid_rows(batch, keys.shape[0])
      exclude = pairing.no_negatives(batch, self.negatives)
      how: dict[str, Any] = dict(strategy=self.strategy, tile=self.tile)
      yield reduce.row_logsumexp(
        anchor, keys, scale, valid=valid, exclude=exclude, **how
      )
    if queued is None:
      return
    how = self._counted(queued, batch)
    if not self.hard:
      yield reduce.row_logsumexp(anchor, queued.keys, scale, **how)
      return
    _, place = reduce.row_top_k(anchor, queued.keys, self.skip + self.hard, **how)
    place = place[:, self.skip :]
    chosen = jnp.take(queued.keys, place, axis=0, mode="clip")  # [b, hard, d]
    s = scale * jnp.einsum("bd,bkd->bk", anchor, chosen, precision="highest")
    s = jnp.where(place >= 0, s, -jnp.inf)
    yield pairing.log_total(*jnp.moveaxis(s, 1, 0))

  def _more_positives(
    self,
    query: Array,
    keys: tuple[Array, Array],
    queued: tuple[memory.Columns, memory.Columns],
    total: Array,
    scale: Array,
    batch: Batch,
  ) -> Array:
    """Returns f32[b]: the sum of -log softmax over what is near on both sides."""
    place, other = (
      reduce.row_top_k(x, c.keys, self.positives, **self._counted(c, batch))[1]
      for x, c in zip(keys, queued)
    )
    near = jnp.any(place[:, :, None] == other[:, None, :], axis=-1) & (place >= 0)
    chosen = jnp.take(queued[0].keys, place, axis=0, mode="clip")
    s = scale * jnp.einsum("bd,bkd->bk", query, chosen, precision="highest")
    return jnp.sum(jnp.where(near, total[:, None] - s, 0.0), axis=1)

  def _counted(self, queued: memory.Columns, batch: Batch) -> dict[str, Any]:
    """Returns the options of `reduce` for the keys of a queue that count."""
    by_id = self.negatives == "ids"
    exclude = (pairing.ids(batch), queued.ids) if by_id else None
    how = dict(strategy=self.strategy, tile=self.tile)
    return dict(valid=queued.valid, exclude=exclude, **how)

  def _enqueue(self, state: State, k: Mapping[str, Array], batch: Batch) -> State:
    queues = {}
    for name, held in state.get(memory.QUEUE, {}).items():
      valid = pairing.valid_rows(batch, k[name].shape[0], name)
      ids = batch.get("id", jnp.zeros(valid.shape, jnp.int32))
      queues[name] = memory.push(held, k[name], valid, ids)
    return {memory.QUEUE: queues} if queues else state

  def _directions(self) -> tuple[pairing.Pair, ...]:
    """Returns (query, key) of every term."""
    both = pairing.directions(self.pairs) if self.symmetric else self.pairs
    return tuple(both)

  def _names(self, side: str) -> tuple[str, ...]:
    """Returns the names that are keys, or queries."""
    return tuple({d[side == "keys"]: None for d in self._directions()})

  def _check(self, present: Collection[str]) -> None:
    for name in {*self._names("q"), *self._names("keys")}:
      if name not in present:
        raise ValueError(
          f"{WHERE}.pairs = {self.pairs} compares {name!r}, which is no modality of "
          f"the batch and no view ({catalogue.near_misses(name, sorted(present))})"
        )
