"""The default objective: encode the batch once, then a weighted sum of losses."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from model import catalogue
from model.types import Array, Batch, Encoded, Metrics, ObjectiveOutput, Params, State

_KEY = "config.objective.options.losses"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objective:
  """loss = sum_k weight_k * loss_k(z), z the normalised pooled embeddings.

  A loss may ask for other z by an attribute of its class: `normalized = False` for
  pooled embeddings as they are, `tokens = True` for all that `encode` gives.

  The parameters of the k-th loss, and its metrics, are kept under its name; a second
  loss of the same name is called <name>_2, and so on.

  Attributes:
    losses: (a file of model/losses/, weight, options) each. A weight of 0 logs only.

  Raises:
    ValueError: an unknown name or option; lists near misses.
  """

  # Options come as dicts, which have no hash; the losses they build stand for them.
  losses: tuple[tuple[str, float, Mapping[str, Any]], ...] = dataclasses.field(
    default=(("infonce", 1.0, {}),), compare=False
  )
  parts: tuple[tuple[str, str, float, Any], ...] = dataclasses.field(
    init=False, repr=False
  )

  def __post_init__(self):
    parts: list[tuple[str, str, float, Any]] = []
    if not self.losses:
      raise ValueError(f"{_KEY} is empty: name at least one loss")
    for i, entry in enumerate(self.losses):
      if isinstance(entry, str) or len(entry) != 3:
        raise ValueError(f"{_KEY}[{i}] = {entry!r} must be (name, weight, options)")
      name, weight, options = entry
      loss = catalogue.load("model.losses", name, "Loss", dict(options or {}))
      count = 1 + sum(p[1] == name for p in parts)
      label = name if count == 1 else f"{name}_{count}"
      parts.append((label, name, float(weight), loss))
    object.__setattr__(self, "parts", tuple(parts))

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the keys of the batch, other than modalities, that the losses need."""
    parts = (loss for _, _, _, loss in self.parts)
    return tuple({k: None for loss in parts for k in getattr(loss, "reads", ())})

  def init(self, key: Array, towers: Any, batch_spec: Batch) -> tuple[Params, State]:
    """Returns ({loss label: its parameters}, {}).

    Raises:
      ValueError: a loss pairs a modality that batch_spec does not have.
    """
    del towers
    self._check(batch_spec)
    params = {}
    for i, (label, _, _, loss) in enumerate(self.parts):
      own = loss.init(jax.random.fold_in(key, i))
      if own:
        params[label] = own
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
    del key, step
    encoded = encode(batch)
    self._check(encoded)
    raw = {m: e.pooled.astype(jnp.float32) for m, e in encoded.items()}
    unit = {m: normalize(x) for m, x in raw.items()}
    forms: dict[str, Mapping[str, Any]] = dict(raw=raw, unit=unit, tokens=encoded)
    total = jnp.zeros((), jnp.float32)
    metrics: Metrics = {}
    for label, name, weight, loss in self.parts:
      value, own = loss(params.get(label, {}), forms[_form(loss)], batch)
      total += weight * value
      metrics[f"{label}/loss"] = value
      for k, v in own.items():
        metrics[label + k.removeprefix(name)] = v
    return ObjectiveOutput(loss=total, metrics=metrics, state=state)

  def _check(self, present: Mapping[str, Any]) -> None:
    for i, (_, name, _, loss) in enumerate(self.parts):
      kind = "modalities" if hasattr(loss, "modalities") else "pairs"
      named = getattr(loss, kind, ())
      for m in named if kind == "modalities" else sum(named, ()):
        if m not in present:
          raise ValueError(
            f"loss {name!r} compares {kind} = {named}, but the batch has no {m!r} "
            f"({catalogue.near_misses(m, sorted(present))}). Set the {kind} of {_KEY}"
            f"[{i}], or add {m!r} to config.model.modalities and let "
            "config.data.transforms make it."
          )


def _form(loss: Any) -> str:
  """Returns the form of z that a loss asks for: "unit", "raw" or "tokens"."""
  if getattr(loss, "tokens", False):
    return "tokens"
  return "unit" if getattr(loss, "normalized", True) else "raw"


def normalize(x: Array) -> Array:
  """Returns x f32[..., d] at unit L2 norm; zero stays zero, with a finite gradient."""
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, 1e-12))
