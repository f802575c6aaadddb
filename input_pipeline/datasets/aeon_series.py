"""Time series in classes, of one or several channels, out of aeon."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from input_pipeline import recipe
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example
from model import catalogue

RECIPE = recipe.Recipe(
  title="Time series of the UCR and UEA archives",
  client="pip",
  package="aeon==1.6.0",
  folder="aeon/datasets/data",
  licence="BSD-3-Clause (the package)",
  attribution="timeseriesclassification.com, by A. Bagnall, E. Keogh, J. Lines and "
  "others; each file names its donors",
  keys="values (steps x channels), class, its name where it has one",
  rule="each set's own",
  traps="`name` picks one of the package's sets; in most, classes are only numbers",
)
_PARTS = ("train", "test")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(recipe.Installed):
  """Examples: values f32[steps, channels], NaN where missing, and label_class.

  Classes with a name are captions, {"en": (name,)}; a set for regression has `target`
  in their place. Drops "broken series".

  Attributes:
    name: of the set: BasicMotions, JapaneseVowels, ItalyPowerDemand, ArrowHead, ...
  """

  name: str = "BasicMotions"

  about = RECIPE

  def __post_init__(self):
    super().__post_init__()
    known = sorted(
      p.name for p in self.folder.iterdir() if (p / f"{p.name}_TRAIN.ts").exists()
    )
    if self.name not in known:
      raise ValueError(
        f"config.data.options.name: aeon has no {self.name!r} as .ts; "
        f"{catalogue.near_misses(self.name, known)}"
      )

  @functools.cached_property
  def _parts(self) -> Mapping[str, tuple[Mapping[str, str], list[str]]]:
    """Returns part -> its header, and its lines of data."""
    stem = f"{self.name}/{self.name}"
    return {part: _parsed(self.table(f"{stem}_{part.upper()}.ts")) for part in _PARTS}

  @functools.cached_property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns the names of the classes, in the order of the file."""
    header, _ = self._parts["train"]
    labelled, *names = header.get("classlabel", "false").split()
    return {"class": tuple(names)} if labelled == "true" else {}

  def entries(self) -> Sequence[recipe.Entry]:
    """Returns the lines of both parts; equal ones are a family."""
    return [
      recipe.Entry(line, recipe.fingerprint(line.encode()), part)
      for part, (_, lines) in self._parts.items()
      for line in lines
    ]

  def example(self, value: Any) -> Example:
    """Returns the series of a line: channels, then the class, parted by colons."""
    *channels, last = value.split(":")
    try:
      rows = [[_number(x) for x in channel.split(",")] for channel in channels]
      values = np.asarray(rows, np.float32).T  # channels of several lengths: ValueError
      names = self.classes.get("class", ())
      if not names:
        return {"values": values, "target": float(last)}
      label = names.index(last.strip())
    except ValueError as e:
      raise Drop("broken series") from e
    word = names[label]
    captions = {} if _is_number(word) else {"captions": {"en": (word,)}}
    return {"values": values, "label_class": label, **captions}


def _parsed(data: bytes) -> tuple[Mapping[str, str], list[str]]:
  """Returns the header of a .ts file, name in lower case -> value, and its data."""
  header, lines = {}, []
  for line in map(str.strip, data.decode("utf-8", "replace").splitlines()):
    if line.startswith("@"):
      name, _, rest = line[1:].partition(" ")
      header[name.lower()] = rest.strip()
    elif line and line[0] not in "#%":
      lines.append(line)
  if header.get("timestamps", "false").lower() == "true":
    raise ValueError("aeon's sets with time stamps are not read")
  return header, lines


def _number(text: str) -> float:
  return float("nan") if text.strip() == "?" else float(text)


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True
