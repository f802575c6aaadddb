"""CLDR's annotations: names and keywords of emoji and symbols in 163 locales."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
from typing import Any

from input_pipeline import emoji_tables, recipe
from input_pipeline.interfaces import Example

RECIPE = recipe.Recipe(
  title="CLDR annotations",
  client="npm",
  package="cldr-annotations-full@48.2.0",
  folder="node_modules/cldr-annotations-full/annotations",
  licence="Unicode License v3",
  attribution="Unicode CLDR (c) Unicode, Incorporated, and others",
  keys="captions (names by locale), keywords by locale, the character",
  rule="characters that differ in skin tone or gender stay together",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(recipe.Installed):
  """Examples: captions {locale: names}, keywords {locale: words}, key, text.

  `key` is that of the source `emoji`: code points without U+FE0F; `text` is the
  character or sequence itself.
  """

  about = RECIPE

  @functools.cached_property
  def _locales(self) -> Mapping[str, Mapping[str, Any]]:
    """Returns locale -> character -> what is said of it; some locales say nothing."""
    names = sorted(p.parent.name for p in self.folder.glob("*/annotations.json"))
    found = {}
    for name in names:
      data = json.loads(self.table(f"{name}/annotations.json"))["annotations"]
      if data.get("annotations"):
        found[name] = data["annotations"]
    return found

  def entries(self) -> Sequence[recipe.Entry]:
    """Returns the characters that any locale has, in order of their code points."""
    characters = sorted({c for table in self._locales.values() for c in table})
    return [recipe.Entry(c, emoji_tables.family_key(_key(c))) for c in characters]

  def example(self, value: Any) -> Example:
    """Returns what all locales say of a character."""
    said = {k: table[value] for k, table in self._locales.items() if value in table}
    return {
      "captions": {k: tuple(v["tts"]) for k, v in said.items() if v.get("tts")},
      "keywords": {k: tuple(v["default"]) for k, v in said.items() if v.get("default")},
      "key": _key(value),
      "text": value,
    }


def _key(character: str) -> str:
  return emoji_tables.normal_key(f"{ord(c):x}" for c in character)
