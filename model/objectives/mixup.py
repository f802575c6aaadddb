"""Contrastive learning of mixtures, then of soft targets: M3CoL (arXiv 2409.17777).

Until `switch` the losses `first` compare mixtures of two rows with rows of the other
modality (m3co); afterwards the losses `then` compare rows as they are, by default with
targets softmax(b b^T / t) for the rows of a and of b (cwcl, the targets without
gradient, which the released code lets through). `always` has those of both phases, such
as the classifier that the paper trains beside.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from model.losses import pairs
from model.objectives import contrastive, parts
from model.types import (
  PARTS,
  Array,
  Batch,
  Encoded,
  ObjectiveOutput,
  Params,
  State,
)
from model.views import mix

FIRST: tuple[Any, ...] = (("m3co", 1.0, {}),)
THEN: tuple[Any, ...] = (
  (
    "cwcl",
    1.0,
    dict(
      pairs=(("text", "image"), ("image", "text")),
      kernel="exp",
      soft="both",
      width=0.125,
      temperature=0.125,
      learned=False,
    ),
  ),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """loss = sum of the phase's losses; z has each modality m, and m_mixed beside it.

  A modality that is mixed as input is encoded twice, in the second phase too, when the
  mixtures count for nothing. All losses are computed, and logged, in both phases.

  Attributes:
    first: (a file of model/losses/, weight, options) each, before step `switch`.
    then: likewise, from step `switch` on.
    always: likewise, in both phases.
    switch: the step, at least 1; the paper's is a third of the way.
    modalities: to be mixed, each with partners of its own.
    inputs: those of them that are mixed as inputs; others are as embeddings.
    beta: of model.views.mix.
    probability: of model.views.mix.
    group: of model.views.mix.
    heads: (names, a file of model/heads/, options) each, put on before normalising.

  Raises:
    ValueError: an unknown name or option; lists near misses.
  """

  # Options come as dicts, which have no hash; what they build stands for them.
  first: tuple[Any, ...] = dataclasses.field(default=FIRST, compare=False)
  then: tuple[Any, ...] = dataclasses.field(default=THEN, compare=False)
  always: tuple[Any, ...] = dataclasses.field(default=(), compare=False)
  switch: int = 0
  modalities: tuple[str, ...] = ("image", "text")
  inputs: tuple[str, ...] = ("image",)
  beta: float = 0.15
  probability: float = 0.5
  group: int = 0
  heads: tuple[Any, ...] = dataclasses.field(default=(), compare=False)
  inner: contrastive.Objective = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    if other := set(self.inputs) - set(self.modalities):
      raise ValueError(
        f"config.objective.options.inputs names {sorted(other)}, which are not among "
        f"its modalities {self.modalities}"
      )
    if self.switch < 1:
      raise ValueError(
        f"config.objective.options.switch = {self.switch} must be at least 1: the step "
        "at which the losses `then` take over, such as config.total_steps // 3"
      )
    losses = (*self.first, *self.then, *self.always)
    inner = contrastive.Objective(losses=losses, heads=self.heads)
    object.__setattr__(self, "inner", inner)

  @property
  def topped(self) -> parts.Heads:
    """Returns the heads."""
    return self.inner.topped

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the keys of the batch that the losses need and that are not made here."""
    made = {
      f"{_mixed(m)}_{key}" for m in self.modalities for key in ("partner", "share")
    }
    return tuple(key for key in self.inner.reads if key not in made)

  def init(self, key: Array, towers: Any, batch_spec: Batch) -> tuple[Params, State]:
    """Returns ({loss label: its parameters, "heads": those of the heads}, {}).

    Raises:
      ValueError: a modality that batch_spec does not have, or a head of such.
    """
    for m in self.modalities:
      if m not in batch_spec:
        raise ValueError(
          f"config.objective.options.modalities = {self.modalities} are mixed, but the "
          f"batch has no {m!r}"
        )
    params = {}
    for i, (label, _, _, loss) in enumerate(self.inner.terms):
      own = loss.init(jax.random.fold_in(key, i))
      if own:
        params[label] = own
    if self.inner.topped:
      spec = parts.spec(towers, batch_spec)
      spec |= {_mixed(m): Encoded(spec[m].pooled) for m in self.modalities}
      own_key = jax.random.fold_in(key, len(self.inner.terms))
      params[parts.HEADS] = self.inner.topped.init(own_key, spec)
    return params, {}

  def __call__(
    self,
    params: Params,
    state: State,
    encode: Callable[..., Mapping[str, Encoded]],
    batch: Batch,
    key: Array,
    step: Array,
  ) -> ObjectiveOutput:
    """Encodes the batch and its mixtures, and sums the losses of the phase.

    Raises:
      ValueError: a loss compares a name that is neither encoded nor made.
    """
    mix_key, head_key = jax.random.split(key)
    encoded, says = self.mixtures(encode, batch, mix_key)
    out = self.inner(
      params, state, lambda *_, **__: encoded, {**batch, **says}, head_key, step
    )
    early = (step < self.switch).astype(jnp.float32)
    phase = [early] * len(self.first) + [1 - early] * len(self.then)
    phase += [jnp.ones(())] * len(self.always)
    total = jnp.zeros((), jnp.float32)
    for share, (label, _, weight, _) in zip(phase, self.inner.terms, strict=True):
      total += share * weight * out.metrics[f"{label}/loss"]
    metrics = {**out.metrics, "mixup/first": early}
    return ObjectiveOutput(loss=total, metrics=metrics, state=out.state)

  def mixtures(
    self, encode: Callable[..., Mapping[str, Encoded]], batch: Batch, key: Array
  ) -> tuple[dict[str, Encoded], dict[str, Array]]:
    """Returns name -> Encoded, mixtures included, and what they were made of.

    Rows that lack one of the modalities are not mixed: a mixture is compared with what
    both of its rows have of the others.
    """
    encoded = dict(encode(batch))
    plain = dict(encoded)
    rows = plain[self.modalities[0]].pooled.shape[0]
    valid = pairs.valid_rows(batch, rows, *self.modalities)
    says: dict[str, Array] = {
      f"{_mixed(m)}_valid": batch[f"{m}_valid"]
      for m in self.modalities
      if f"{m}_valid" in batch
    }
    for i, m in enumerate(self.modalities):
      own = jax.random.fold_in(key, i)
      view = mix.View(
        modality=m, beta=self.beta, probability=self.probability, group=self.group
      )
      partner, share = view.draw(own, rows, valid)
      if m in self.inputs:
        others = {o + part for o in plain if o != m for part in PARTS}
        shown = {k: v for k, v in batch.items() if k not in others}
        seen = view.apply(shown, partner, share)
        parts.check_pack(batch, seen, m)
        encoded[_mixed(m)] = encode(seen)[m]
      else:  # Their tokens were not mixed.
        encoded[_mixed(m)] = Encoded(view.blend(plain[m].pooled, partner, share))
      says |= dict(zip(view.writes, (partner, share)))
    return encoded, says


def _mixed(modality: str) -> str:
  return f"{modality}_mixed"
