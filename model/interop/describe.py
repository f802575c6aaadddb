"""A checkpoint's shapes and config.json as our config, and what a config must be."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any

from ml_collections import ConfigDict

from configs import base
from model.encoders import config as configs
from model.encoders.config import Modality
from model.interop.rules import Arrays, Rule

WHERE = "config.model"
SIGLIP_LOSS = (("siglip", 1.0, dict(pairs=base.IMAGE_TEXT)),)
# Preprocessing of the two families, where the checkpoint says nothing else.
CLIP_PIXELS = dict(
  crop=1.0,  # the shorter side resized, a square from the middle
  mean=(0.48145466, 0.4578275, 0.40821073),
  std=(0.26862954, 0.26130258, 0.27577711),
)
SIGLIP_PIXELS = dict(crop=0.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class Format:
  """One architecture of one library.

  Attributes:
    library: "hf" | "open_clip" | "big_vision".
    architecture: as that library calls it.
    marks: names of arrays that only its checkpoints have together.
    describe: (state, its config.json or {}) -> our config.
    image: keys of the image modality, and of its trunk, that it has no choice in; None:
      it has no tower of images.
    text: the same of the text.
    rules: (image, text) -> rules between its names and paths of our parameters.
    card: our config -> its config.json.
    pixels: mean and std of its images, and the option `crop` of our resize.
    loss: whose scalars it holds; "": none.
    normal: a state as it may come -> as the rules name it.
    harmless: how names of arrays begin that the towers have no use for, such as heads
      of other tasks; others that it has no place for are refused.
    stacked: the state of a model that scans its layers; None: as any other's.
  """

  library: str
  architecture: str
  marks: tuple[str, ...]
  describe: Callable[[Arrays, Mapping[str, Any]], ConfigDict]
  image: Mapping[str, Any] | None
  text: Mapping[str, Any] | None
  rules: Callable[[Any, Any], list[Rule]]  # of Modality, or None where it has none
  card: Callable[[Any, Any, int], dict[str, Any]]
  pixels: Mapping[str, Any]
  loss: str = ""
  normal: Callable[[Arrays], Arrays] = dict
  harmless: tuple[str, ...] = ()
  stacked: Callable[[Arrays], dict[str, Any]] | None = None

  @property
  def modalities(self) -> tuple[str, ...]:
    """Names of the towers that it has."""
    return tuple(m for m in ("image", "text") if getattr(self, m) is not None)


CLIP_IMAGE = dict(
  stem="patches",
  position="learned",
  pool="cls",
  stem_bias=False,
  stem_norm=True,
  project=True,
  project_bias=False,
  wide=False,
  norm="layernorm",
  norm_after=False,
  layer_scale=0.0,
  registers=0,
  causal=False,
)
CLIP_TEXT = CLIP_IMAGE | dict(stem="tokens", pool="last", stem_norm=False, causal=True)
CLIP_TEXT.pop("stem_bias")
SIGLIP_IMAGE = CLIP_IMAGE | dict(
  pool="map", stem_bias=True, stem_norm=False, project=False
)
SIGLIP_TEXT = CLIP_TEXT | dict(causal=False, project_bias=True, pad=-1, eos=-1)


def shape(state: Arrays, name: str, rank: int) -> tuple[int, ...]:
  """Returns the shape of an array that the config is read from.

  Raises:
    ValueError: it is missing, or of another rank.
  """
  if name not in state:
    raise ValueError(
      f"the checkpoint lacks {name}, from whose shape the model is read: it is not "
      "whole, or not of the architecture that its other arrays look like"
    )
  if state[name].ndim != rank:
    raise ValueError(f"{name} has shape {state[name].shape}, expected {rank} axes")
  return state[name].shape


def plain(keys: Mapping[str, Any], *free: str) -> dict[str, Any]:
  """Returns what a format has no choice in, without those that it has."""
  return {k: v for k, v in keys.items() if k not in free}


def depth(state: Arrays, blocks: str, after: str = ".") -> int:
  """Returns how many blocks are named `<blocks><i><after>`."""
  pattern = rf"{re.escape(blocks)}(\d+){re.escape(after)}"
  found = {int(match[1]) for k in state if (match := re.match(pattern, k))}
  if found != {*range(len(found))} or not found:
    raise ValueError(
      f"the checkpoint's blocks {blocks}* are {sorted(found)}, expected 0, 1, 2, ..."
    )
  return len(found)


def size(n: int, patch: Sequence[int], channels: int) -> tuple[int, int, int]:
  """Returns the size of a square image of n patches.

  Raises:
    ValueError: n is no square.
  """
  side = math.isqrt(n)
  if side**2 != n:
    raise ValueError(
      f"the image tower has {n} positions of patches, expected a square: images that "
      "are not square are not read"
    )
  return side * patch[0], side * patch[1], channels


def heads(width: int, given: int | None) -> int:
  """Returns the number of heads; unsaid, heads of 64, as CLIP's and SigLIP's have.

  Raises:
    ValueError: the heads do not divide the width.
  """
  count = given or max(width // 64, 1)
  if width % count:
    raise ValueError(
      f"{count} heads do not divide the width {width}: what does config.json say?"
    )
  return count


def two_towers(
  name: str,
  embed_dim: int,
  trunks: tuple[dict[str, Any], dict[str, Any]],
  image: dict[str, Any],
  text: dict[str, Any],
) -> ConfigDict:
  """Returns a config with the trunks of (image, text) and their other keys."""
  c = base.get_config()
  c.name = name
  c.model.embed_dim = embed_dim
  c.model.trunk.update(trunks[0])
  c.model.modalities.image = base.modality(**image)
  c.model.modalities.text = base.modality(stem="tokens", **text)
  own = {k: v for k, v in trunks[1].items() if v != c.model.trunk[k]}
  c.model.modalities.text.trunk.update(own)
  return c


def towers(
  model: Mapping[str, Any], kind: Format
) -> tuple[Modality | None, Modality | None]:
  """Returns (image, text) of `config.model`, if the format can hold it.

  One of them is None where the format has no such tower.

  Raises:
    ValueError: it cannot; says every key that keeps it from that.
  """
  found = {m.name: m for m in configs.modalities(model)}
  odd = []
  if {*found} != {*kind.modalities}:
    wanted = " and ".join(kind.modalities)
    odd.append(f"{WHERE}.modalities = {sorted(found)}, expected {wanted}")
  if model["shared_trunk"]:
    odd.append(f"{WHERE}.shared_trunk = True, expected False")
  if configs.sparse(model):
    odd.append(f"{WHERE}.moe makes it sparse, expected every = 0 and layers = ()")
  for name, needed in (("image", kind.image), ("text", kind.text)):
    if name not in found or needed is None:
      continue
    for key, value in needed.items():
      own = hasattr(found[name], key)
      got = getattr(found[name] if own else found[name].trunk, key)
      if got != value:
        part = key if own else f"trunk.{key}"
        odd.append(f"{WHERE}.modalities.{name}.{part} = {got!r}, expected {value!r}")
  if not odd:
    odd = _extent(found.get("image"), found.get("text"), kind)
  if odd:
    raise ValueError(
      f"{kind.library}'s {kind.architecture} cannot hold this model:\n  "
      + "\n  ".join(odd)
    )
  return found.get("image"), found.get("text")


def _extent(image: Modality | None, text: Modality | None, kind: Format) -> list[str]:
  odd = []
  if image and (image.size[0] != image.size[1] or image.patch[0] != image.patch[1]):
    odd.append(
      f"{WHERE}.modalities.image.size = {image.size} and .patch = {image.patch}, "
      "expected squares"
    )
  pools_at_eos = text and text.pool == "last" and "eos" not in (kind.text or {})
  if text and pools_at_eos and (text.eos < 0 or text.eos == text.pad):
    other = f", other than .pad = {text.pad}" * (text.pad >= 0)
    odd.append(
      f"{WHERE}.modalities.text.eos = {text.eos}, expected the id that ends a text"
      f"{other}: {kind.architecture} pools there"
    )
  return odd
