"""The default objective: encode the batch, or views of it; a weighted sum of losses."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from model import catalogue
from model.objectives import parts
from model.objectives.parts import HEADS, normalize
from model.types import Array, Batch, Encoded, Metrics, ObjectiveOutput, Params, State

_KEY = "config.objective.options.losses"
TEACHERS = (None, "ema", "frozen")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """loss = sum_k weight_k * loss_k(z), z the normalised pooled embeddings.

  A loss may ask for other z by an attribute of its class: `normalized = False` for
  pooled embeddings as they are, `tokens = True` for all that `encode` gives.

  The parameters of the k-th loss, and its metrics, are kept under its name; a second
  loss of the same name is called <name>_2, and so on.

  Attributes:
    losses: (a file of model/losses/, weight, options) each. A weight of 0 logs only.
    views: (modality, names, ((a file of model/views/, options), ...)) each; see
      model.objectives.parts. z holds each view by its name.
    heads: (names, a file of model/heads/, options) each, put on before normalising.
    teacher: None | "ema" | "frozen": encodes the same views with those parameters too,
      without gradient, as z["<name>@teacher"]. The average has its own heads; frozen
      towers have none: what they learned is their plain embedding.

  Raises:
    ValueError: an unknown name or option; lists near misses.
  """

  # Options come as dicts, which have no hash; what they build stands for them.
  losses: tuple[tuple[str, float, Mapping[str, Any]], ...] = dataclasses.field(
    default=(("infonce", 1.0, {}),), compare=False
  )
  views: tuple[Any, ...] = dataclasses.field(default=(), compare=False)
  heads: tuple[Any, ...] = dataclasses.field(default=(), compare=False)
  teacher: str | None = None
  terms: tuple[tuple[str, str, float, Any], ...] = dataclasses.field(
    init=False, repr=False
  )
  seen: tuple[parts.Views, ...] = dataclasses.field(init=False, repr=False)
  topped: parts.Heads = dataclasses.field(init=False, repr=False)

  def __post_init__(self):
    if self.teacher not in TEACHERS:
      raise ValueError(
        f"config.objective.options.teacher = {self.teacher!r} must be one of {TEACHERS}"
      )
    object.__setattr__(self, "terms", _build_losses(self.losses))
    object.__setattr__(self, "seen", parts.build_views(self.views))
    object.__setattr__(self, "topped", parts.Heads(self.heads))
    if self.teacher and not self.taught:
      raise ValueError(
        f"config.objective.options.teacher = {self.teacher!r}, but no loss of {_KEY} "
        f"reads what it encodes: name {parts.of_teacher('image')!r} or the like in one"
      )

  @property
  def frozen(self) -> bool:
    """Returns whether a copy of the first parameters is to be kept."""
    return self.teacher == "frozen"

  @property
  def taught(self) -> tuple[str, ...]:
    """Returns the views and modalities that a loss wants of the teacher."""
    read = (
      m for _, _, _, loss in self.terms for m in (*_named(loss)[1], *_taught(loss))
    )
    return tuple({parts.taught(m): None for m in read if parts.taught(m)})

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the keys of the batch, other than modalities, that the losses need."""
    losses = (loss for _, _, _, loss in self.terms)
    return tuple({k: None for loss in losses for k in getattr(loss, "reads", ())})

  def init(self, key: Array, towers: Any, batch_spec: Batch) -> tuple[Params, State]:
    """Returns ({loss label: its parameters, "heads": those of the heads}, {}).

    Raises:
      ValueError: a loss, a view or a head of what batch_spec does not have.
    """
    names = parts.view_names(batch_spec, self.seen)
    taught = map(parts.of_teacher, names if self.teacher else ())
    self._check([*names, *self.topped.made, *taught])
    params = {}
    for i, (label, _, _, loss) in enumerate(self.terms):
      own = loss.init(jax.random.fold_in(key, i))
      if own:
        params[label] = own
    if self.topped:
      spec = parts.spec(towers, batch_spec, self.seen)
      params[HEADS] = self.topped.init(jax.random.fold_in(key, len(self.terms)), spec)
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
    """Encodes batch with the online parameters and sums the losses.

    Raises:
      ValueError: a loss pairs a modality that the batch does not have.
    """
    del step
    encoded = self._encode(params, encode, batch, key)
    self._check(encoded)
    batch = self.topped.marked(parts.marked(batch, self.seen))
    raw = {m: e.pooled.astype(jnp.float32) for m, e in encoded.items()}
    unit = {m: normalize(x) for m, x in raw.items()}
    forms: dict[str, Mapping[str, Any]] = dict(raw=raw, unit=unit, tokens=encoded)
    total = jnp.zeros((), jnp.float32)
    metrics: Metrics = {}
    for label, name, weight, loss in self.terms:
      value, own = loss(params.get(label, {}), forms[_form(loss)], batch)
      total += weight * value
      metrics[f"{label}/loss"] = value
      for k, v in own.items():
        metrics[label + k.removeprefix(name)] = v
    return ObjectiveOutput(loss=total, metrics=metrics, state=state)

  def _encode(self, params, encode, batch, key) -> dict[str, Encoded]:
    """Returns what the losses see, by name: views, other modalities, the teacher's."""
    look, top = jax.random.split(key) if self.seen or self.topped else (key, key)
    encoded = parts.encode_views(encode, batch, self.seen, look)
    marked = parts.marked(batch, self.seen)
    if self.topped:
      encoded = self.topped(params.get(HEADS, {}), encoded, top, True, marked)
    if self.teacher:
      taught = parts.encode_views(
        encode, batch, self.seen, look, self.teacher, self.taught
      )
      if self.topped and self.teacher == "ema":
        own = encode.params("ema").get(HEADS, {})
        taught = self.topped(own, taught, top, False, marked)
      taught = jax.lax.stop_gradient(taught)
      encoded |= {parts.of_teacher(name): e for name, e in taught.items()}
    return encoded

  def _check(self, present: Iterable[str]) -> None:
    present = sorted(present)
    for i, (_, name, _, loss) in enumerate(self.terms):
      kind, names = _named(loss)
      for m in names:
        if m not in present:
          raise ValueError(
            f"loss {name!r} compares {kind} = {getattr(loss, kind)}, but the batch has "
            f"no {m!r} ({catalogue.near_misses(m, present)}). Set the {kind} of {_KEY}"
            f"[{i}], or add {m!r} to config.model.modalities and let "
            "config.data.transforms make it."
          )
      for m in _taught(loss):
        if m not in present:
          raise ValueError(
            f"loss {name!r} of {_KEY}[{i}] learns from {m!r}, which nothing encodes "
            f"({catalogue.near_misses(m, present)}): set "
            'config.objective.options.teacher = "ema" or "frozen"'
          )


def _named(loss: Any) -> tuple[str, tuple[str, ...]]:
  """Returns the field by which a loss says what it compares, and what that names."""
  if hasattr(loss, "modalities"):
    return "modalities", tuple(loss.modalities)
  return "pairs", tuple(m for pair in getattr(loss, "pairs", ()) for m in pair)


def _taught(loss: Any) -> tuple[str, ...]:
  """Returns what a loss reads of z without gradient."""
  return getattr(loss, "teachers", ())


def _build_losses(losses: Any) -> tuple[tuple[str, str, float, Any], ...]:
  """Returns (label, name, weight, loss) of each entry of the option `losses`."""
  terms: list[tuple[str, str, float, Any]] = []
  if not losses:
    raise ValueError(f"{_KEY} is empty: name at least one loss")
  for i, entry in enumerate(losses):
    if isinstance(entry, str) or len(entry) != 3:
      raise ValueError(f"{_KEY}[{i}] = {entry!r} must be (name, weight, options)")
    name, weight, options = entry
    loss = catalogue.load("model.losses", name, "Loss", dict(options or {}))
    count = 1 + sum(t[1] == name for t in terms)
    label = name if count == 1 else f"{name}_{count}"
    terms.append((label, name, float(weight), loss))
  return tuple(terms)


def _form(loss: Any) -> str:
  """Returns the form of z that a loss asks for: "unit", "raw" or "tokens"."""
  if getattr(loss, "tokens", False):
    return "tokens"
  return "unit" if getattr(loss, "normalized", True) else "raw"
