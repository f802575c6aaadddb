"""`config.model`, checked: what each modality is, and what its trunk looks like."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from model import catalogue
from model.layers.block import TrunkConfig
from model.layers.packing import Pack
from model.layers.pool import POOLS
from model.layers.position import POSITIONS
from model.mel import LogMel
from model.moe.config import MoeConfig
from model.shapes import example_spec
from model.types import Array

WHERE = "config.model.modalities"
STEMS = ("patches", "tokens", "token_patches")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Modality:
  """The keys of one `config.model.modalities.<name>`; see configs/base.py.

  `trunk` is the modality's own trunk or, in a shared model, the shared one.
  """

  name: str
  trunk: TrunkConfig
  stem: str = "patches"
  size: tuple[int, ...] = ()
  patch: tuple[int, ...] = ()
  log_mel: LogMel | None = None
  vocab: int = 0
  length: int = 0
  pad: int = 0
  eos: int = -1
  ngrams: int = 0
  ngram_rows: int = 32_768
  drop_ngrams: float = 0.0
  gradients: tuple[int, ...] = ()
  colors: tuple[int, ...] = ()
  color_range: tuple[float, float] = (0.0, 1.0)
  drop_descriptors: float = 0.0
  drop_patches: float = 0.0
  stem_bias: bool = True
  stem_norm: bool = False
  registers: int = 0
  pack: Pack | None = None
  position: str = "learned"
  pool: str = "mean"
  project: bool = True
  project_bias: bool = False

  def __post_init__(self):
    where = f"{WHERE}.{self.name}"
    if not self.name.isidentifier():
      raise ValueError(f"{where}: the name of a modality must be an identifier")
    for key, known in (("stem", STEMS), ("position", POSITIONS), ("pool", POOLS)):
      if getattr(self, key) not in known:
        raise ValueError(
          f"{where}.{key} = {getattr(self, key)!r}: "
          f"{catalogue.near_misses(str(getattr(self, key)), list(known))}"
        )
    for key in ("drop_patches", "drop_descriptors", "drop_ngrams"):
      if not 0 <= getattr(self, key) < 1:
        raise ValueError(
          f"{where}.{key} = {getattr(self, key)}, expected 0 or more and below 1"
        )
    if self.stem != "patches":
      for key in ("vocab", "length"):
        if getattr(self, key) < 1:
          raise ValueError(f"{where}.{key} = {getattr(self, key)}, expected at least 1")
      for key in ("pad", "eos"):
        if not -1 <= getattr(self, key) < self.vocab:
          raise ValueError(
            f"{where}.{key} = {getattr(self, key)}, expected an id below {where}.vocab "
            f"= {self.vocab}, or -1 for none"
          )
      self._check_ids(where)
    else:
      self._check_patches(where)
    if self.pool in ("cls", "first") and self.trunk.causal:
      raise ValueError(
        f"{where}.pool = {self.pool!r} with a causal trunk: the first token sees no "
        "other; use 'last', 'mean' or 'map', or set config.model.trunk.causal = False"
      )
    if self.registers and (self.pool != "cls" or self.registers < 0):
      raise ValueError(
        f"{where}.registers = {self.registers} with {where}.pool = {self.pool!r}, "
        "expected 0 or more behind the token of pool = 'cls'"
      )
    if self.project_bias and not self.project:
      raise ValueError(f"{where}.project_bias = True without {where}.project")
    if self.pack:
      self._check_pack(f"{where}.pack")
    divisor = 2 * len(self.patch) if self.stem == "patches" else 2
    if self.position == "sincos" and self.trunk.width % divisor:
      raise ValueError(
        f"{where}.position = 'sincos' needs a trunk width divisible by {divisor}, got "
        f"{self.trunk.width} ({self.trunk.width} % {divisor} = "
        f"{self.trunk.width % divisor})"
      )

  def _check_ids(self, where: str) -> None:
    if self.stem == "token_patches" and (len(self.patch) != 1 or self.patch[0] < 1):
      raise ValueError(
        f"{where}.patch = {self.patch}, expected (ids of a patch,), such as (64,)"
      )
    if self.stem == "token_patches" and self.ngrams:
      raise ValueError(f"{where}.ngrams are of stem 'tokens', not 'token_patches'")
    if self.stem == "token_patches" and self.eos >= 0:
      raise ValueError(f"{where}.eos is of stem 'tokens', not 'token_patches'")
    for key in ("log_mel", "gradients", "colors", "drop_patches", "drop_descriptors"):
      if getattr(self, key):
        raise ValueError(f"{where}.{key} is of stem 'patches', not {self.stem!r}")
    if self.ngrams < 0 or self.ngram_rows < 2:
      raise ValueError(
        f"{where}.ngrams = {self.ngrams} and .ngram_rows = {self.ngram_rows}, expected "
        "0 or more n-grams in at least 2 rows, of which the first is padding"
      )

  def _check_patches(self, where: str) -> None:
    sizes = len(self.size), len(self.patch)
    if sizes not in ((3, 2), (4, 3)) or min(*self.size, *self.patch) < 1:
      raise ValueError(
        f"{where}.size = {self.size} and .patch = {self.patch}, expected (height, "
        "width, channels) and (height, width), or of a video (frames, height, width, "
        "channels) and (frames, height, width), all at least 1"
      )
    if self.ngrams or self.drop_ngrams:
      key = "ngrams" if self.ngrams else "drop_ngrams"
      raise ValueError(f"{where}.{key} is of stem 'tokens', not 'patches'")
    plain = self.size[2:] == (1,) and not (self.gradients or self.colors)
    if self.log_mel and not plain:
      raise ValueError(
        f"{where}.log_mel makes size = (frames, mels, 1), and without gradients and "
        f"colors; got .size = {self.size}"
      )
    self._check_descriptors(where)
    for side, part in zip(self.size, self.patch, strict=False):
      if side % part:
        raise ValueError(
          f"{where}.size = {self.size} is not tiled by {where}.patch = {self.patch} "
          f"({side} % {part} = {side % part})"
        )

  def _check_descriptors(self, where: str) -> None:
    for key, parts in (
      ("gradients", "cells per side, bins"),
      ("colors", "cells per side, bins per channel"),
    ):
      value = getattr(self, key)
      if value and (len(value) != 2 or min(value) < 1):
        raise ValueError(f"{where}.{key} = {value}, expected ({parts}) or ()")
      if value and len(self.size) != 3:
        raise ValueError(f"{where}.{key} = {value} are of images, not of videos")
    if self.colors and (len(self.color_range) != 2 or self.colors[1] < 2):
      raise ValueError(
        f"{where}.colors = {self.colors} and .color_range = {self.color_range}, "
        "expected at least 2 bins between (least, greatest) value"
      )
    if self.colors and not self.color_range[0] < self.color_range[1]:
      raise ValueError(f"{where}.color_range = {self.color_range} is empty")

  def _check_pack(self, where: str) -> None:
    assert self.pack is not None
    if self.drop_patches or self.log_mel:
      what = "log_mel" if self.log_mel else "drop_patches"
      raise ValueError(
        f"{where} is planned with the batch, before the device knows the tokens that "
        f"{WHERE}.{self.name}.{what} leaves: use one of them"
      )
    if self.stem != "patches" and self.pad < 0 and self.eos < 0:
      raise ValueError(
        f"{where} is of sequences with padding, but by {WHERE}.{self.name}.pad = "
        f"{self.pad} and .eos = {self.eos} all ids are real"
      )
    self.pack.check(self.tokens, self.extra + self.row, where)

  @property
  def row(self) -> int:
    """Tokens of one step along the axis that a mask is of."""
    if self.stem != "patches":
      return 1
    return math.prod(
      s // p for s, p in zip(self.size[1:], self.patch[1:], strict=False)
    )

  @property
  def wide(self) -> bool:
    """Whether there is a wide path past the trunk."""
    return bool(self.gradients or self.colors or self.ngrams)

  @property
  def described(self) -> int:
    """Numbers that the descriptors of one example hold."""
    n = 0
    if self.gradients:
      n += self.gradients[0] ** 2 * self.gradients[1]
    if self.colors:
      n += self.colors[0] ** 2 * self.colors[1] ** self.size[2]
    return n

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of one example of the raw array."""
    return example_spec(dataclasses.asdict(self))[0]

  @property
  def dtype(self) -> np.dtype:
    """Dtype of the raw array."""
    return example_spec(dataclasses.asdict(self))[1]

  @property
  def tokens(self) -> int:
    """Tokens of a whole example in the trunk, those of pool "cls" included."""
    if self.stem == "patches":
      n = math.prod(s // p for s, p in zip(self.size, self.patch, strict=False))
    else:
      n = self.length
    return n + self.extra

  @property
  def extra(self) -> int:
    """Tokens that are not of the input: that of pool "cls", and registers."""
    return self.registers + (self.pool == "cls")


def modalities(model: Mapping[str, Any]) -> tuple[Modality, ...]:
  """Returns the modalities of `config.model`, in alphabetical order.

  Raises:
    ValueError: an unknown key, a value that cannot be, or a trunk of its own for a
      modality of a shared trunk.
  """
  shared = catalogue.build(TrunkConfig, model["trunk"], "config.model.trunk")
  if not len(model["modalities"]):
    raise ValueError(f"{WHERE} is empty, expected at least one")
  built = []
  for name in sorted(model["modalities"]):
    options = dict(model["modalities"][name].items())
    own = options.pop("trunk", None) or {}
    where = f"{WHERE}.{name}"
    if own and model["shared_trunk"]:
      raise ValueError(
        f"{where}.trunk overrides {sorted(own)}, but config.model.shared_trunk is "
        "True: remove the overrides, or give each modality its own trunk"
      )
    trunk = shared
    if own:
      merged = {**dict(model["trunk"].items()), **dict(own.items())}
      trunk = catalogue.build(TrunkConfig, merged, f"{where}.trunk")
    if "name" in options:
      raise ValueError(f"unknown key {where}.name: the key of the entry is its name")
    log_mel = _log_mel(options.pop("log_mel", None), options, f"{where}.log_mel")
    pack = options.pop("pack", None)
    if pack and pack.get("tokens"):
      options["pack"] = catalogue.build(Pack, dict(pack.items()), f"{where}.pack")
    options |= {"name": name, "trunk": trunk, "log_mel": log_mel}
    modality = catalogue.build(Modality, options, where)
    if not modality.project and trunk.width != model["embed_dim"]:
      raise ValueError(
        f"{where}.project = False with a trunk of width {trunk.width}, but "
        f"config.model.embed_dim = {model['embed_dim']}: they must be equal"
      )
    built.append(modality)
  return tuple(built)


def _log_mel(given: Any, modality: Mapping[str, Any], where: str) -> LogMel | None:
  """Returns the options of a spectrogram, which is as wide as the modality's size."""
  if not given:
    return None
  options = dict(given.items())
  size = tuple(modality.get("size", ()))
  mels = size[1] if len(size) > 1 else 1  # the modality says what is wrong with it
  if options.get("mels", mels) != mels:
    raise ValueError(
      f"{where}.mels = {options['mels']}, but {where[: -len('log_mel')]}size = {size} "
      f"is (frames, mels, 1): {mels} mels"
    )
  return catalogue.build(LogMel, options | {"mels": mels}, where)


def sparse(model: Mapping[str, Any]) -> MoeConfig | None:
  """Returns the options of the sparse layers, or None for a dense model."""
  options = model["moe"]
  if options["every"] or options["layers"]:
    return MoeConfig.from_config(options, tuple(model["modalities"]))
  # The defaults speak of images and texts: of no concern to a dense model without them.
  MoeConfig.from_config(options)
  return None


def example(model: Mapping[str, Any], size: int = 1) -> dict[str, Array]:
  """Returns a batch of `size` zeros of every modality: enough to initialise Towers.

  Such as f32[size, height, width, channels], or int32[size, length + ngrams] of ids:
  `model.shapes.example_spec`. The parameters do not depend on `size`.
  """
  return {m.name: jnp.zeros((size, *m.shape), m.dtype) for m in modalities(model)}
