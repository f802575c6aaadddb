"""KLettres: letters and syllables, spoken in twenty languages."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any
from xml.etree import ElementTree

from input_pipeline import recipe
from input_pipeline.interfaces import Example

RECIPE = recipe.Recipe(
  title="KLettres",
  client="apt",
  package="klettres-data=4:22.12.3-1",
  folder="usr/share/klettres",
  licence="GPL-2+",
  attribution="KLettres (c) 2001-2011 Anne-Marie Mahfouf and contributors, KDE",
  keys="audio_bytes (ogg), what is said, language, letter or syllable",
  rule="all clips of one spelling, whatever the language, stay together",
  traps="its tables name 141 clips that are not there: they drop out",
)
_KINDS = ("alphabet", "syllables")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(recipe.Installed):
  """Examples: audio_bytes, captions {language: (letters,)}, key, labels.

  Drops "missing file".
  """

  about = RECIPE

  def entries(self) -> Sequence[recipe.Entry]:
    """Returns (file, letters, language, kind) of the tables of all languages."""
    found = []
    for language, table in self._tables.items():
      for kind in _KINDS:
        for sound in table.iterfind(f".//{kind}//sound"):
          file, text = sound.get("file", ""), sound.get("name", "")
          found.append(recipe.Entry((file, text, language, kind), text.casefold()))
    return found

  @functools.cached_property
  def _tables(self) -> Mapping[str, ElementTree.Element]:
    names = sorted(str(p.parent.name) for p in self.folder.glob("*/sounds.xml"))
    return {n: ElementTree.fromstring(self.table(f"{n}/sounds.xml")) for n in names}

  def example(self, value: Any) -> Example:
    """Returns the clip and what it says."""
    file, text, language, kind = value
    return {
      "audio_bytes": self.read(file),
      "captions": {language: (text,)},
      "key": file,
      "label_language": self.classes["language"].index(language),
      "label_kind": _KINDS.index(kind),
    }

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns the languages, and letters against syllables."""
    return {"language": tuple(self._tables), "kind": _KINDS}
