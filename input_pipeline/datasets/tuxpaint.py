"""Tux Paint's stamps: pictures with captions, spoken captions and sounds."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import importlib.util
from typing import Any, NamedTuple

from input_pipeline import recipe, splits, untrusted
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example

RECIPE = recipe.Recipe(
  title="Tux Paint stamps",
  client="apt",
  package="tuxpaint-stamps-default=2022.06.04-1",
  folder="usr/share/tuxpaint/stamps",
  licence="GPL-2",
  attribution="Tux Paint stamps (c) 2002-2022 Bill Kendrick and contributors",
  keys="image_bytes (PNG or SVG, drawn), captions by language, speech_<language> and "
  "sound (ogg or wav), its folder as class",
  rule="pictures of one English caption or one name but for its number, and mirrored "
  "ones, stay together",
  traps="158 are letters (`letters=False`); Tamil is mojibake (left out); eleven "
  "mirrored ones have no caption and drop out; modes and sizes of all kinds",
)
SVG_SIZE = 256  # pixels across; most PNGs are about that
_LETTERS = "symbols/alphabets/"


class _Stamp(NamedTuple):
  name: str
  image: str
  caption: str  # the first line, English; "" for none
  speech: Mapping[str, str]  # language -> file
  sound: str  # "" for none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(recipe.Installed):
  """Examples: image_bytes, captions {language: (text,)}, key, id, labels and sounds.

  speech_<language> is the caption as spoken, `sound` what the thing sounds like: ogg or
  wav bytes, where they are there. Stamps of one English caption share an `id`. Drops
  "no captions" and, without resvg-py, "SVG needs resvg-py".

  Attributes:
    audio: "sound" or a language of the speech: only the stamps that have it, and it is
      `audio_bytes`; the other sounds are left out. "" takes all stamps.
    letters: whether those of the alphabet are part of it.
    omit: languages whose captions are left out.
  """

  audio: str = ""
  letters: bool = True
  omit: tuple[str, ...] = ("ta",)

  about = RECIPE

  @functools.cached_property
  def _stamps(self) -> Mapping[str, _Stamp]:
    """Returns name -> stamp, of all that have a picture."""
    names = untrusted.below(str(self.folder))
    there = set(names)
    # Of a stamp that is drawn twice, the PNG: it needs no renderer.
    drawn = {n[:-4]: n for n in names if n.endswith(".svg")}
    drawn |= {n[:-4]: n for n in names if n.endswith(".png")}
    speech: dict[str, dict[str, str]] = {stem: {} for stem in drawn}
    for name in names:
      base, _, ending = name.rpartition(".")
      stem, spoken, language = base.rpartition("_desc")
      sounds = ending in ("ogg", "wav") and "." not in language  # "_da.ogg.ogg"
      if sounds and spoken and stem in drawn:
        speech[stem][language.removeprefix("_") or "en"] = name
    return {
      stem: _Stamp(
        stem,
        drawn[stem],
        self._lines(stem)[0] if f"{stem}.txt" in there else "",
        speech[stem],
        next((stem + e for e in (".ogg", ".wav") if stem + e in there), ""),
      )
      for stem in sorted(drawn)
    }

  def _lines(self, stem: str) -> list[str]:
    text = untrusted.text(self.read(f"{stem}.txt"))
    return [line.strip() for line in text.splitlines()] or [""]

  @functools.cached_property
  def _alike(self) -> Mapping[str, str]:
    """Returns name -> the first name of its family."""
    captions = {n: s.caption.casefold() for n, s in self._stamps.items() if s.caption}
    return splits.join(self._stamps, captions, {n: _object(n) for n in self._stamps})

  @functools.cached_property
  def _ids(self) -> Mapping[str, int]:
    """Returns name -> number that stamps of one English caption share."""
    numbers: dict[str, int] = {}
    keys = {n: s.caption or f"/{n}" for n, s in self._stamps.items()}
    return {n: numbers.setdefault(key, len(numbers)) for n, key in keys.items()}

  def entries(self) -> Sequence[recipe.Entry]:
    """Returns all stamps."""
    return [
      recipe.Entry(stamp, self._alike[name]) for name, stamp in self._stamps.items()
    ]

  def wanted(self, value: Any) -> bool:
    """Returns whether a stamp has the sound, and is no letter if these are unwanted."""
    lettered = self.letters or not value.name.startswith(_LETTERS)
    return lettered and (not self.audio or bool(self._audio(value)))

  def _audio(self, stamp: _Stamp) -> str:
    return stamp.sound if self.audio == "sound" else stamp.speech.get(self.audio, "")

  def example(self, value: Any) -> Example:
    """Returns the picture, its captions and its sounds."""
    stamp: _Stamp = value
    if not stamp.caption:
      raise Drop("no captions")
    captions = {"en": (stamp.caption,)}
    for line in self._lines(stamp.name)[1:]:
      language, found, text = line.partition(".utf8=")
      if found and text.strip() and language not in self.omit:
        captions[language] = (text.strip(),)
    if self.audio:
      sounds = {"audio_bytes": self.read(self._audio(stamp))}
    else:
      sounds = {f"speech_{k}": self.read(v) for k, v in sorted(stamp.speech.items())}
      sounds |= {"sound": self.read(stamp.sound)} if stamp.sound else {}
    top, sub = _folders(stamp.name)
    return {
      "image_bytes": self._picture(stamp.image),
      "captions": captions,
      "key": stamp.name,
      "id": self._ids[stamp.name],
      "label_top": self.classes["top"].index(top),
      "label_sub": self.classes["sub"].index(sub),
      **sounds,
    }

  def _picture(self, name: str) -> bytes:
    data = self.read(name)
    if not name.endswith(".svg"):
      return data
    if importlib.util.find_spec("resvg_py") is None:
      raise Drop("SVG needs resvg-py")
    import resvg_py  # optional: of 961 stamps, 165 are vector art alone

    try:
      drawn = resvg_py.svg_to_bytes(
        svg_string=untrusted.text(data),
        width=SVG_SIZE,
        dpi=96,  # some give their size in points
        skip_system_fonts=True,
      )
    except Exception as e:  # resvg has a type of its own for each way to be no SVG
      raise Drop("broken SVG") from e
    return bytes(drawn)

  @functools.cached_property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns the folders: the outermost ones, and all."""
    tops, subs = zip(*map(_folders, self._stamps), strict=True)
    return {"top": tuple(sorted(set(tops))), "sub": tuple(sorted(set(subs)))}


def _folders(name: str) -> tuple[str, str]:
  return name.partition("/")[0], name.rpartition("/")[0]


def _object(name: str) -> str:
  """Returns a name without "_mirror" and the number of the drawing at its end."""
  folder, _, base = name.removesuffix("_mirror").rpartition("/")
  return f"{folder}/{base.rstrip('0123456789').rstrip('-_') or base}"
