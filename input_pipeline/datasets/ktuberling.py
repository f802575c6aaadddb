"""KTuberling: the names of things, spoken in 26 languages."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any
from xml.etree import ElementTree

from input_pipeline import recipe
from input_pipeline.interfaces import Example

RECIPE = recipe.Recipe(
  title="KTuberling",
  client="apt",
  package="ktuberling-data=4:22.12.3-1",
  folder="usr/share/ktuberling/sounds",
  licence="GPL-2+",
  attribution="KTuberling (c) 1999-2017 Eric Bischoff and contributors, KDE",
  keys="audio_bytes (ogg, wav or opus), the thing in English, language",
  rule="all clips of one thing, whatever the language, stay together",
  traps="the words as spoken are not written anywhere; the table for Indonesian names "
  "199 clips that are not there: they drop out",
)
_ENDING = ".soundtheme"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(recipe.Installed):
  """Examples: audio_bytes, captions {"en": (thing,)}, key, id, label_language.

  Clips of one thing share an `id`. Drops "missing file".
  """

  about = RECIPE

  def entries(self) -> Sequence[recipe.Entry]:
    """Returns (file, thing, language) of the tables of all languages."""
    return [
      recipe.Entry((sound.get("file", ""), thing, language), thing)
      for language, table in self._tables.items()
      for sound in table.iterfind(".//sound")
      for thing in (sound.get("name", ""),)
    ]

  @functools.cached_property
  def _tables(self) -> Mapping[str, ElementTree.Element]:
    names = sorted(p.name for p in self.folder.glob(f"*{_ENDING}"))
    return {
      name.removesuffix(_ENDING): ElementTree.fromstring(self.table(name))
      for name in names
    }

  def example(self, value: Any) -> Example:
    """Returns the clip and the thing that it names."""
    file, thing, language = value
    return {
      "audio_bytes": self.read(file),
      "captions": {"en": (thing.replace("_", " ").replace("-", " "),)},
      "key": file,
      "id": self._families[thing],
      "label_language": self.classes["language"].index(language),
    }

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns the languages."""
    return {"language": tuple(self._tables)}
