"""The options of the sparse layers, `config.model.moe`, checked before compiling."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import difflib
import math
from typing import Any

from model import catalogue

WHERE = "config.model.moe"
ROUTERS = "model.moe.routers"
POOLED = ("importance", "load", "gshard", "z")  # over all modalities together
PER_MODALITY = ("local_entropy", "global_entropy")
DISPATCHES = ("gather", "einsum", "dropless")
KERNELS = ("auto", "megablox", "ragged_dot")
STATISTICS = ("global", "group")
USUAL = ("image", "text")  # configs/base.py has settings for them, whatever there is
FLOORS = ("served", "effective_experts")  # metrics that training warns about


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoeConfig:
  """Routing, capacity and auxiliary losses of every sparse layer (arXiv 2206.02770).

  Attributes:
    every: every n-th block is sparse, counted from the end of each n; 0 is dense.
    layers: explicit 0-based block indices instead of `every`.
    router: a file of model/moe/routers/, whose docstring says which options it heeds.
    experts: experts per layer, E.
    k: experts per token; of expert choice, in the mean.
    slots: of each expert and example; the soft router only.
    capacity: buffer slots over the mean load while training, C.
    capacity_eval: the same in evaluation; token choice only. There are slots for all
      modalities, even if some are encoded alone.
    group: examples per routing group.
    priority: batch-priority routing (arXiv 2106.05974, section 4); token choice only.
    noise: standard deviation of the routing noise in training, in units of 1/experts;
      token choice only.
    dispatch: "gather", or the one-hot "einsum" that it is tested against; or
      "dropless": no slots, so that no capacity applies (see `model.moe.dropless`). The
      soft router is two matmuls, whichever of the first two this names.
    pieces: in how many pieces slots travel to experts on other devices and back: with
      2, the experts compute one while the other is on its way.
    dropless_kernel: "megablox" | "ragged_dot" | "auto", what the device does well.
    statistics: importance, load, gshard and global entropy over the "global" batch
      (over each microbatch, if it comes in some), or over each "group" and then
      averaged. Which one LIMoE used is unverified.
    weight: of the mean of the enabled losses; of each call, where an objective encodes
      several times.
    losses: (name, weight) of each enabled loss; the per-modality ones are named
      "local_entropy_text".
    min_experts: (modality, S): the threshold log S of its global entropy.
    warn: ("<metric>/<modality>", floor) of FLOORS, below which training warns.
    identical_init: all experts of a layer start from the same weights, as V-MoE's do.
      Whether LIMoE's do is unverified.
  """

  every: int = 0
  layers: tuple[int, ...] = ()
  router: str = "token_choice"
  experts: int = 8
  k: int = 1
  slots: int = 1
  capacity: float = 1.05
  capacity_eval: float = 4.0
  group: int = 8
  priority: bool = True
  noise: float = 1.0
  dispatch: str = "gather"
  pieces: int = 1
  dropless_kernel: str = "auto"
  statistics: str = "global"
  weight: float = 0.04
  losses: tuple[tuple[str, float], ...] = ()
  min_experts: tuple[tuple[str, float], ...] = ()
  warn: tuple[tuple[str, float], ...] = ()
  identical_init: bool = False

  def __post_init__(self):
    for key in ("experts", "k", "slots", "group", "pieces"):
      if getattr(self, key) < 1:
        raise ValueError(
          f"{WHERE}.{key} = {getattr(self, key)}, expected a whole number above 0."
        )
    if self.k > self.experts:
      raise ValueError(
        f"{WHERE}.k = {self.k} experts per token out of {WHERE}.experts = "
        f"{self.experts}: k can be at most {self.experts}."
      )
    for key in ("capacity", "capacity_eval"):
      if not 0 < getattr(self, key) < math.inf:
        raise ValueError(
          f"{WHERE}.{key} = {getattr(self, key)} gives an expert ceil(tokens * k * "
          f"{key} / experts) <= 0 slots, which cannot hold one token; expected a "
          "number above 0, such as 1.05."
        )
    for key in ("noise", "weight"):
      if not 0 <= getattr(self, key) < math.inf:
        raise ValueError(f"{WHERE}.{key} = {getattr(self, key)}, expected 0 or more.")
    known_values = {
      "router": catalogue.names(ROUTERS),
      "dispatch": DISPATCHES,
      "dropless_kernel": KERNELS,
      "statistics": STATISTICS,
    }
    for key, known in known_values.items():
      if getattr(self, key) not in known:
        raise ValueError(
          f"{WHERE}.{key} = {getattr(self, key)!r}: "
          f"{catalogue.near_misses(str(getattr(self, key)), list(known))}"
        )
    if self.dispatch == "dropless" and self.pieces > 1:
      raise ValueError(
        f"{WHERE}.pieces = {self.pieces} with {WHERE}.dispatch = 'dropless': there are "
        f"no slots that could travel in pieces. Set {WHERE}.pieces = 1."
      )
    self._check_losses()
    self._check_floors()
    catalogue.find(ROUTERS, self.router, "Router").check(self)

  def _check_losses(self) -> None:
    least = dict(self.min_experts)
    for name, weight in self.losses:
      kind, modality = split(name)
      if weight <= 0:
        raise ValueError(
          f"{WHERE}.losses: {name} has weight {weight}, expected one above 0, or 0 in "
          "the config to disable it."
        )
      if kind == "load" and self.noise == 0:
        raise ValueError(
          f"{WHERE}.losses.load = {weight} needs routing noise: its Phi((eta - l) / "
          f"sigma) divides by sigma = {WHERE}.noise / experts = 0. Set {WHERE}.noise "
          f"above 0, or {WHERE}.losses.load = 0."
        )
      if kind != "global_entropy":
        continue
      if modality not in least:
        raise ValueError(
          f"{WHERE}.losses.global_entropy.{modality} = {weight} needs a threshold: set "
          f"{WHERE}.min_experts.{modality}, from 1 to below {self.experts} experts."
        )
      if not 1 <= least[modality] < self.experts:
        raise ValueError(
          f"{WHERE}.min_experts.{modality} = {least[modality]} with {WHERE}.experts = "
          f"{self.experts}: the threshold log {least[modality]:g} must lie in [0, log "
          f"{self.experts}), the largest entropy over {self.experts} experts. Set "
          f"{WHERE}.losses.global_entropy.{modality} = 0, or of several experts "
          f"{WHERE}.min_experts.{modality} to at least 1 and below their number."
        )

  def _check_floors(self) -> None:
    for name, floor in self.warn if self.every or self.layers else ():
      metric, _, modality = name.partition("/")
      most = 1 if metric == "served" else self.experts
      if not floor <= most:
        raise ValueError(
          f"{WHERE}.warn.{metric}.{modality} = {floor:g} cannot be reached: {metric} "
          f"is at most {most}. Set it lower."
        )

  @classmethod
  def from_config(
    cls, config: Mapping[str, Any], modalities: Sequence[str] | None = None
  ) -> "MoeConfig":
    """Builds the options from `config.model.moe` (a ConfigDict or a plain mapping).

    Args:
      config: the keys of configs/base.py:moe; absent ones take the defaults above.
      modalities: the model's modalities; the per-modality losses must name one of them.

    Raises:
      ValueError: an unknown key, loss or modality, or contradicting options.
    """
    options = {key: config[key] for key in config}
    if not (options.get("every") or options.get("layers")):
      modalities = None  # a dense model does not mind the defaults
    options["losses"] = _flatten_losses(options.get("losses") or {}, modalities)
    least = options.get("min_experts") or {}
    options["min_experts"] = tuple((m, float(least[m])) for m in sorted(least))
    options["warn"] = floors(config)
    _check_modalities("min_experts", least, modalities)
    for metric, by_modality in (config.get("warn") or {}).items():
      _check_modalities(f"warn.{metric}", by_modality, modalities)
    return catalogue.build(cls, options, WHERE)

  def blocks(self, depth: int) -> tuple[int, ...]:
    """Returns the 0-based indices of the sparse blocks of a trunk of `depth` blocks.

    Raises:
      ValueError: an index of `layers` outside the trunk, or `every` above its depth.
    """
    if self.layers:
      for i in self.layers:
        if not 0 <= i < depth:
          raise ValueError(
            f"{WHERE}.layers names block {i}, expected 0 to {depth - 1} "
            f"(config.model.trunk.depth = {depth})."
          )
      return tuple(sorted(set(self.layers)))
    if self.every > depth or self.every < 0:
      raise ValueError(
        f"{WHERE}.every = {self.every} makes no block of config.model.trunk.depth = "
        f"{depth} sparse; expected 1 to {depth}, or 0 for none."
      )
    return tuple(range(self.every - 1, depth, self.every)) if self.every else ()

  def check_mesh(self, size: int) -> None:
    """Checks that the experts can be split over a mesh axis `expert` of `size`.

    Raises:
      ValueError: they cannot; names the sizes that can.
    """
    if self.experts % size == 0:
      return
    divisors = [str(d) for d in range(1, self.experts + 1) if self.experts % d == 0]
    raise ValueError(
      f"experts = {self.experts} cannot be split over the mesh axis expert = {size} "
      f"({self.experts} % {size} = {self.experts % size}). Set {WHERE}.experts to a "
      f"multiple of {size}, or config.mesh.expert to one of {', '.join(divisors)}."
    )

  def groups(self, examples: int, shards: int = 1) -> int:
    """Returns the number of routing groups of a global batch of `examples`.

    Args:
      examples: size of the global batch.
      shards: devices that the batch is split over: mesh data * fsdp * expert.

    Raises:
      ValueError: the batch is not whole groups, or not whole groups on every device.
    """
    if examples % self.group:
      raise ValueError(
        f"a batch of {examples} examples is not whole routing groups of {WHERE}.group "
        f"= {self.group} ({examples} % {self.group} = {examples % self.group}). Set "
        f"config.batch_size to a multiple of {self.group}, or {WHERE}.group to a "
        f"divisor of {examples}; pad an evaluation batch with rows that are not valid."
      )
    count = examples // self.group
    if count % shards:
      raise ValueError(
        f"{examples} examples / {WHERE}.group = {self.group} make {count} routing "
        f"groups, which cannot be split over data * fsdp * expert = {shards} shards of "
        f"config.mesh ({count} % {shards} = {count % shards}). Set config.batch_size "
        f"to a multiple of {self.group} * {shards} = {self.group * shards}, or "
        f"{WHERE}.group to a divisor of {examples} / {shards} = {examples / shards:g}."
      )
    return count


def refuse_losses(config: MoeConfig, kinds: Sequence[str], why: str) -> None:
  """Checks that none of the losses `kinds` is enabled, for a router they do not suit.

  Raises:
    ValueError: one is; says that such losses `why`.
  """
  for name, weight in config.losses:
    if split(name)[0] in kinds:
      raise ValueError(
        f"{WHERE}.losses.{name} = {weight} makes no sense with {WHERE}.router = "
        f"{config.router!r}: such losses {why}. Set {WHERE}.losses.{name} = 0."
      )


def refuse_dropless(config: MoeConfig, why: str) -> None:
  """Checks that the dispatch is not "dropless", which only token choice has a use for.

  Raises:
    ValueError: it is; says `why` not.
  """
  if config.dispatch == "dropless":
    raise ValueError(
      f"{WHERE}.dispatch = 'dropless' makes no sense with {WHERE}.router = "
      f"{config.router!r}: {why}. Set {WHERE}.dispatch = 'gather'."
    )


def split(name: str) -> tuple[str, str]:
  """Returns (loss, modality) of a flat loss name; the modality of a pooled one is "".

  Raises:
    ValueError: no such loss; lists near misses.
  """
  if name in POOLED:
    return name, ""
  for kind in PER_MODALITY:
    if name.startswith(f"{kind}_") and len(name) > len(kind) + 1:
      return kind, name[len(kind) + 1 :]
  known = [*POOLED, *(f"{kind}_<modality>" for kind in PER_MODALITY)]
  raise ValueError(f"{WHERE}.losses: no {name!r}: {catalogue.near_misses(name, known)}")


def floors(config: Mapping[str, Any]) -> tuple[tuple[str, float], ...]:
  """Returns ("<metric>/<modality>", floor) of `config.model.moe`.warn.

  Raises:
    ValueError: another metric than those of FLOORS, or no floor per modality.
  """
  flat = []
  warn = config.get("warn") or {}
  for metric in warn:
    if metric not in FLOORS:
      known = catalogue.near_misses(metric, list(FLOORS))
      raise ValueError(f"unknown key {WHERE}.warn.{metric}: {known}")
    if not hasattr(warn[metric], "items"):
      raise ValueError(
        f"{WHERE}.warn.{metric} = {warn[metric]!r}, expected modality -> floor, such "
        "as {'text': 0.5}."
      )
    flat += [(f"{metric}/{m}", float(v)) for m, v in sorted(warn[metric].items())]
  return tuple(flat)


def _check_modalities(
  key: str, names: Iterable[str], modalities: Sequence[str] | None
) -> None:
  """Refuses what looks like a misspelt modality; of one that is absent nothing is used.

  So a recipe may keep the settings of a modality that it leaves out.
  """
  for name in names:
    if modalities is None or name in (*modalities, *USUAL):
      continue
    if difflib.get_close_matches(name, modalities):
      hint = catalogue.near_misses(name, list(modalities))
      raise ValueError(f"unknown modality {WHERE}.{key}.{name}: {hint}")


def _flatten_losses(
  losses: Mapping[str, Any], modalities: Sequence[str] | None
) -> tuple[tuple[str, float], ...]:
  if isinstance(losses, tuple):  # already flat
    return losses
  flat = []
  for kind in losses:
    if kind not in (*POOLED, *PER_MODALITY):
      known = [*POOLED, *PER_MODALITY]
      raise ValueError(
        f"unknown key {WHERE}.losses.{kind}: {catalogue.near_misses(kind, known)}"
      )
    value = losses[kind]
    if kind in POOLED:
      if isinstance(value, Mapping) or hasattr(value, "items"):
        raise ValueError(
          f"{WHERE}.losses.{kind} = {value}, expected one weight for the tokens "
          "of all modalities."
        )
      flat.append((kind, float(value or 0)))
      continue
    if not hasattr(value, "items"):
      if value:
        raise ValueError(
          f"{WHERE}.losses.{kind} = {value!r}, expected modality -> weight, such as "
          "{'text': 1.0}."
        )
      continue
    for modality, weight in sorted(value.items()):
      if weight and modalities is not None and modality not in modalities:
        raise ValueError(
          f"unknown modality {WHERE}.losses.{kind}.{modality}: "
          f"{catalogue.near_misses(modality, list(modalities))}"
        )
      flat.append((f"{kind}_{modality}", float(weight or 0)))
  return tuple((name, weight) for name, weight in flat if weight)
