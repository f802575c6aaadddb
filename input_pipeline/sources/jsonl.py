"""JSON-lines that name image files: one object a line.

{"image": "photos/1.jpg", "caption": "a red house", "meta": {"year": 1999}}

c.data.source = "jsonl"
c.data.options = dict(paths="pairs/{split}.jsonl", root="pairs")
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from etils import epath
import numpy as np

from input_pipeline import untrusted
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example

_CHUNK = 2**24
_MAX_LINE = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """The lines of one or more files, in order, with the files that they name.

  Drops "broken JSON", "text is not UTF-8", "line too long", "no <field>", "no path",
  "path outside the root", "missing file", "file too large" and "unreadable file".

  Attributes:
    paths: a file, a glob, or several of either; "{split}" is replaced.
    split: for "{split}" in paths.
    root: the folder below which all files lie; "" is that of the JSON-lines.
    image: the field with the path of the image; "" for examples without one.
    captions: the field with a text, texts, or {language: texts}; several fields give
      all their texts; () for examples without one. "meta.title" is inside another.
    fields: further field -> key of the example ("id", "label_kind"), also as pairs.
    max_bytes: larger files drop out.

  Raises:
    FileNotFoundError: a path that matches no file.
    ValueError: a compressed file.
  """

  paths: str | tuple[str, ...]
  split: str = "train"
  root: str = ""
  image: str = "image"
  captions: str | tuple[str, ...] = "caption"
  fields: Any = ()
  max_bytes: int = untrusted.MAX_BYTES

  def __post_init__(self):
    object.__setattr__(self, "fields", untrusted.pairs(self.fields))
    _ = self._files  # raises where there are none

  def __getstate__(self) -> dict[str, Any]:
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

  @functools.cached_property
  def _files(self) -> tuple[str, ...]:
    return untrusted.all_matches(self.paths, self.split)

  @functools.cached_property
  def _lines(self) -> np.ndarray:
    """Returns i64[lines, 3]: the file, and where the line begins and ends."""
    found = []
    for i, file in enumerate(self._files):
      spans = _spans(file)
      found.append(np.insert(spans, 0, i, axis=1))
    return np.concatenate(found)

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns no names: labels are numbers in the lines."""
    return {}

  def __len__(self) -> int:
    return len(self._lines)

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(f"line {i} of {len(self)}")
    at, start, end = (int(x) for x in self._lines[i])
    if end - start > _MAX_LINE:
      raise Drop("line too long")
    path = epath.Path(self._files[at])
    try:
      with path.open("rb") as file:
        file.seek(start)
        line = file.read(end - start)
    except OSError as e:
      raise Drop("unreadable file") from e
    row = untrusted.parse(line)
    example: Example = {}
    if self.image:
      name = untrusted.field(row, self.image)
      image = untrusted.inside(self.root or str(path.parent), name)
      example["image_bytes"] = untrusted.read(image, self.max_bytes)
    if self.captions:
      example["captions"] = untrusted.captions(row, self.captions)
    for field, key in self.fields:
      example[key] = untrusted.plain(untrusted.field(row, field))
    return example


def _spans(path: str) -> np.ndarray:
  """Returns i64[lines, 2], the beginnings and ends of the lines that hold something."""
  ends, size = [], 0
  with epath.Path(path).open("rb") as file:
    while chunk := file.read(_CHUNK):
      if not size:
        untrusted.refuse_compressed(path, chunk)
      ends.append(size + np.flatnonzero(np.frombuffer(chunk, np.uint8) == ord("\n")))
      size += len(chunk)
  stops = np.concatenate([*ends, [size]]).astype(np.int64)
  starts = np.concatenate([[0], stops[:-1] + 1]).astype(np.int64)
  spans = np.stack([starts, stops], axis=1)
  return spans[stops - starts > 1]  # "\r" is a blank line too
