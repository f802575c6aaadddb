"""Titled tunes in ABC notation, with key and meter, out of music21's corpus."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import re
from typing import Any, NamedTuple

from input_pipeline import recipe, splits, untrusted
from input_pipeline.interfaces import Example

RECIPE = recipe.Recipe(
  title="Tunes in ABC notation",
  client="pip",
  package="music21==10.5.1",
  folder="music21/corpus",
  licence="As each file says: read music21/corpus/license.txt",
  attribution="the transcribers named in each file; music21 by Michael Scott Asato "
  "Cuthbert",
  keys="abc (notes, without title or words), titles, key, meter, origin, genre",
  rule="tunes of one title, or of the same notes, stay together",
  traps="the legal status of essenFolksong is unclear: it is read only by "
  "`essen=True`, and neither it nor what is made of it should be passed on",
)
COLLECTIONS = (
  *("airdsAirs", "essenFolksong", "josquin", "miscFolk", "nottingham-dataset"),
  *("oneills1850", "ryansMammoth"),
)
_ESSEN = "essenFolksong"
_TUNE = re.compile(r"^(?=X:)", re.MULTILINE)
_FIELD = re.compile(r"([A-Za-z]):\s*(.*?)\s*(?:%.*)?$")
_MUSICAL = "KLMPQV"  # of the fields, those that do not tell in words what it is


class _Tune(NamedTuple):
  key: str  # file and number
  abc: str
  fields: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(recipe.Installed):
  """Examples: abc, captions (titles), key, tonality, meter, origin, genre, label.

  `abc` is text: the notes, and the fields for key, meter, lengths, parts, tempo and
  voices. Absent origins and genres are "".

  Attributes:
    essen: whether essenFolksong is part of it.
  """

  essen: bool = False

  about = RECIPE

  def entries(self) -> Sequence[recipe.Entry]:
    """Returns the tunes that have a title, a key, a meter and notes."""
    tunes = {tune.key: tune for tune in self._tunes()}
    titles = {k: _plain(t.fields["T"][0]) for k, t in tunes.items()}
    notes = {k: _notes(t.abc) for k, t in tunes.items()}
    first = splits.join(tunes, titles, notes)
    return [recipe.Entry(tune, first[key]) for key, tune in tunes.items()]

  def _tunes(self) -> Iterator[_Tune]:
    for collection in COLLECTIONS:
      if (collection == _ESSEN and not self.essen) or not (
        self.folder / collection
      ).is_dir():
        continue
      for name in untrusted.below(str(self.folder / collection)):
        if not name.endswith(".abc"):
          continue
        text = self.table(f"{collection}/{name}").decode("utf-8", "replace")
        parts = [p for p in _TUNE.split(text) if p.startswith("X:")]
        for i, part in enumerate(parts):
          tune = _parsed(f"{collection}/{name}:{i}", part)
          if all(any(tune.fields.get(k, ())) for k in "TKM") and _notes(tune.abc):
            yield tune

  def example(self, value: Any) -> Example:
    """Returns the tune."""
    tune: _Tune = value
    fields = tune.fields
    return {
      "abc": tune.abc,
      "captions": tuple(t for t in fields["T"] if t),
      "key": tune.key,
      "tonality": fields["K"][0],
      "meter": fields["M"][0],
      "origin": fields.get("O", ("",))[0],
      "genre": fields.get("R", ("",))[0],
      "label_collection": COLLECTIONS.index(tune.key.partition("/")[0]),
    }

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns the collections."""
    return {"collection": COLLECTIONS}


def _parsed(key: str, text: str) -> _Tune:
  fields: dict[str, tuple[str, ...]] = {}
  kept = []
  for line in map(str.strip, text.splitlines()):
    field = _FIELD.match(line)
    if field:
      fields[field[1]] = (*fields.get(field[1], ()), field[2])
    if line and line[0] != "%" and (not field or field[1] in _MUSICAL):
      kept.append(line)
  return _Tune(key, "\n".join(kept), fields)


def _plain(title: str) -> str:
  """Returns the letters and digits of a title in lower case, if there are any."""
  return "".join(c for c in title.casefold() if c.isalnum()) or title


def _notes(abc: str) -> str:
  """Returns the notes alone, without blanks."""
  lines = (line for line in abc.splitlines() if not _FIELD.match(line))
  return "".join("".join(lines).split())
