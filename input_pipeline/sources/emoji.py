"""Emoji: pictures with names in 14 languages, out of three small wheels.

1,923 concepts without skin tones, 1,903 with labels, split by concept family so that a
held-out picture has no near copy in training. Needs requirements-demo.txt.
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import numpy as np

from input_pipeline import emoji_art, emoji_tables, splits
from input_pipeline.interfaces import Example
from model import catalogue

_SPLITS = ("train", "validation", "test", "all")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """Examples: image_bytes (PNG), captions {language: names}, id, key, family, labels.

  `captions["en"]` holds the name, then aliases and short names. Concepts whose pictures
  are identical, in Twemoji or in a style of this source, share an `id`. The labels are
  label_group (9), label_subgroup (100), label_flag and label_style; `class_names` says
  the first two in English words, {"group": "Animals & Nature", ...}, "" for none.

  Attributes:
    split: "train" | "validation" | "test" | "all".
    seed: of the split into families; Twemoji alone decides, so styles never move it.
    test_share: of the concepts without skin tones, that are held out.
    validation_share: of the same, held out too, for choosing settings; taken from what
      would be train, so the test split never moves.
    languages: of the captions.
    styles: drawing styles, "twemoji" | "noto" | "openmoji"; one example for each.
    skin_tones: adds skin tone variants, named as such, to the splits train and all.
    tone_limit: at most so many variants of one concept; 0 is all of them.
    flags: whether flags are part of it.

  Raises:
    ValueError: an unknown split, language or style, shares that leave nothing to train
      on, or the split validation without a share.
    ModuleNotFoundError: a wheel is missing; says which to install.
  """

  split: str = "train"
  seed: int = 0
  test_share: float = 0.2
  validation_share: float = 0.0
  languages: tuple[str, ...] = emoji_tables.LANGUAGES
  styles: tuple[str, ...] = ("twemoji",)
  skin_tones: bool = False
  tone_limit: int = 0
  flags: bool = True

  def __post_init__(self):
    _check("split", (self.split,), _SPLITS)
    _check("languages", self.languages, emoji_tables.LANGUAGES)
    _check("styles", self.styles, emoji_art.STYLES)
    splits.check(self.split, self.test_share, self.validation_share)
    for style in self.styles:
      emoji_art.files(style)

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns label name -> the names of its classes."""
    return _classes()

  def __len__(self) -> int:
    return len(_items(self))

  def __getitem__(self, i: int) -> Example:
    style, key = _items(self)[i]
    concept = emoji_tables.concepts()[key]
    return {
      "image_bytes": emoji_art.picture(style, key),
      "captions": {k: concept.names[k] for k in self.languages},
      "key": key,
      "id": _ids(self.styles)[key],
      "family": _families()[key],
      **_labels(concept),
      "class_names": {
        "group": concept.group,
        "subgroup": concept.subgroup.replace("-", " "),
      },
      "label_style": emoji_art.STYLES.index(style),
    }


def _check(option: str, got: tuple[str, ...], known: tuple[str, ...]) -> None:
  if not got:
    raise ValueError(f"config.data.options.{option} is empty; {', '.join(known)}")
  for word in got:
    if word not in known:
      key = (
        "config.data.split" if option == "split" else f"config.data.options.{option}"
      )
      raise ValueError(
        f"{key}: no {word!r}; {catalogue.near_misses(word, list(known))}"
      )


@functools.lru_cache(maxsize=1)
def _drawn() -> tuple[str, ...]:
  """Returns the keys that have a Twemoji picture and 14 names: 3,953 concepts."""
  art = emoji_art.files("twemoji")
  return tuple(key for key in emoji_tables.concepts() if key in art)


@functools.lru_cache(maxsize=1)
def _families() -> Mapping[str, int]:
  """Returns key -> family, a number that does not depend on any option."""
  keys = _drawn()
  alike = {key: emoji_tables.family_key(key) for key in keys}
  first = splits.join(keys, alike, emoji_art.digests("twemoji"))
  position = {key: i for i, key in enumerate(keys)}
  return {key: position[first[key]] for key in keys}


@functools.lru_cache(maxsize=8)
def _ids(styles: tuple[str, ...]) -> Mapping[str, int]:
  keys = _drawn()
  used = dict.fromkeys(("twemoji", *styles))
  first = splits.join(keys, *(emoji_art.digests(style) for style in used))
  position = {key: i for i, key in enumerate(keys)}
  return {key: position[first[key]] for key in keys}


def _split_of(source: Source) -> Mapping[int, str]:
  """Returns family -> "train" | "validation" | "test", whatever the source's split."""
  return _shares(source.seed, source.test_share, source.validation_share)


@functools.lru_cache(maxsize=16)
def _shares(seed: int, test: float, validation: float) -> Mapping[int, str]:
  """Shuffles the families; the first fill the test share, the next the validation's."""
  concepts, families = emoji_tables.concepts(), _families()
  sizes: dict[int, int] = {}
  for key in _drawn():
    if not concepts[key].toned:
      sizes[families[key]] = sizes.get(families[key], 0) + 1
  order = [int(f) for f in np.random.default_rng(seed).permutation(sorted(sizes))]
  counts = np.cumsum([sizes[f] for f in order])
  last = int(np.searchsorted(counts, test * counts[-1]))
  until = int(np.searchsorted(counts, counts[last] + validation * counts[-1]))
  return {
    **dict.fromkeys(families.values(), "train"),  # also those of tone variants alone
    **dict.fromkeys(order[: last + 1], "test"),
    **dict.fromkeys(order[last + 1 : until + 1], "validation"),
  }


@functools.lru_cache(maxsize=16)
def _items(source: Source) -> tuple[tuple[str, str], ...]:
  """Returns the (style, key) of each example, styles outside, keys in order inside."""
  concepts, families = emoji_tables.concepts(), _families()
  split_of = _split_of(source)
  # Tone variants are augmentation: evaluation is always on the concepts without.
  toned = source.skin_tones and source.split in ("train", "all")
  used: dict[str, int] = {}
  items = []
  for key in _drawn():
    concept = concepts[key]
    if source.split not in ("all", split_of[families[key]]):
      continue
    if concept.flag and not source.flags:
      continue
    if concept.toned:
      base = "-".join(c for c in key.split("-") if c not in emoji_tables.TONES)
      used[base] = used.get(base, 0) + 1
      if not toned or 0 < source.tone_limit < used[base]:
        continue
    items.append(key)
  return tuple(
    (style, key)
    for style in source.styles
    for key in _without_leaks(source, style, items)
  )


def _without_leaks(source: Source, style: str, keys: list[str]) -> list[str]:
  """Returns the keys drawn in the style, without look-alikes of what is held out.

  None of train looks as one of validation or test there, none of validation as one of
  test; test itself is never thinned.
  """
  art = emoji_art.files(style)
  keys = [key for key in keys if key in art]
  guarded = {"train": ("validation", "test"), "validation": ("test",)}
  held_out = guarded.get(source.split, ())
  if not held_out or style == "twemoji":  # families join Twemoji's twins
    return keys
  digests, families, split_of = emoji_art.digests(style), _families(), _split_of(source)
  seen = {
    digests[key]
    for key in _drawn()
    if key in digests and split_of[families[key]] in held_out
  }
  return [key for key in keys if digests[key] not in seen]


@functools.lru_cache(maxsize=1)
def _classes() -> Mapping[str, tuple[str, ...]]:
  concepts = emoji_tables.concepts().values()
  return {
    "group": tuple(sorted({c.group for c in concepts if c.group})),
    "subgroup": tuple(sorted({c.subgroup for c in concepts if c.subgroup})),
    "flag": ("no flag", "flag"),
    "style": emoji_art.STYLES,
  }


def _labels(concept: emoji_tables.Concept) -> dict[str, Any]:
  classes = _classes()
  group, subgroup = concept.group, concept.subgroup
  return {
    "label_group": classes["group"].index(group) if group else -1,
    "label_subgroup": classes["subgroup"].index(subgroup) if subgroup else -1,
    "label_flag": int(concept.flag),
  }
