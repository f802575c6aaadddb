"""A folder of images, captioned by files beside them or by a table.

photos/1.jpg with photos/1.txt (a caption a line) or photos/1.json:
  c.data.source = "image_folder"
  c.data.options = dict(root="photos")

photos/pairs.csv with the columns "image" and "caption":
  c.data.options = dict(root="photos", table="pairs.csv")
"""

from collections.abc import Mapping
import csv
import dataclasses
import functools
import io
from typing import Any

from etils import epath

from input_pipeline import untrusted
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example

_MAX_TABLE = 2**32
_MAX_CELL = 2**24
_BROKEN = "broken row (separators in a text need quotes)"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """The images below a folder, in order of their names, or those that a table names.

  Drops "no caption file", "broken row (...)", "no path", "path outside the root",
  "missing file", "file too large", "unreadable file", "text is not UTF-8", "broken
  JSON" and "no <field>".

  Attributes:
    root: the folder; "{split}" is replaced.
    split: for "{split}" in root and table.
    table: a CSV or TSV (by its name) below root, with a header; "" takes the files
      beside the images. Rows that name the same image are one example, broken ones
      one for each line.
    image: the table's column with the path.
    captions: the table's columns, or the fields of the .json, that hold texts.
    extensions: of images, where there is no table.
    max_bytes: larger images drop out.

  Raises:
    FileNotFoundError: no such folder or table.
    ValueError: a table without these columns.
  """

  root: str
  split: str = "train"
  table: str = ""
  image: str = "image"
  captions: str | tuple[str, ...] = "caption"
  extensions: tuple[str, ...] = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
  max_bytes: int = untrusted.MAX_BYTES

  def __getstate__(self) -> dict[str, Any]:
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

  @functools.cached_property
  def _root(self) -> str:
    root = self.root.replace("{split}", self.split)
    if not epath.Path(root).is_dir():
      raise FileNotFoundError(f"config.data.options.root: no folder {root!r}")
    return root

  @functools.cached_property
  def _names(self) -> tuple[str | int, ...]:
    if self.table:
      return tuple(self._rows)
    endings = tuple(f".{e.lower()}" for e in self.extensions)
    return tuple(n for n in untrusted.below(self._root) if n.lower().endswith(endings))

  @functools.cached_property
  def _rows(self) -> dict[str | int, list[str]]:
    """Returns image -> captions of the table; of broken rows, number of the line."""
    columns = (self.captions,) if isinstance(self.captions, str) else self.captions
    table = self.table.replace("{split}", self.split)
    try:
      data = untrusted.read(untrusted.inside(self._root, table), _MAX_TABLE)
    except Drop as e:
      raise FileNotFoundError(
        f"config.data.options.table = {table!r} in {self._root!r}: {e.reason}"
      ) from e
    # Bytes that are no UTF-8 spoil their own row, not the table.
    lines = io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline="")
    excel = "excel-tab" if table.lower().endswith((".tsv", ".tab")) else "excel"
    return _grouped(csv.reader(lines, excel), self.image, columns)

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns no names: there are no labels."""
    return {}

  def __len__(self) -> int:
    return len(self._names)

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(f"image {i} of {len(self)}")
    name = self._names[i]
    if isinstance(name, int):
      raise Drop(_BROKEN)
    path = untrusted.inside(self._root, name)
    image = untrusted.read(path, self.max_bytes)
    if self.table:
      texts = tuple(self._rows[name])
      if not all(map(untrusted.is_utf8, texts)):
        raise Drop("text is not UTF-8")
      return {"image_bytes": image, "captions": texts}
    return {"image_bytes": image, "captions": self._beside(name)}

  def _beside(self, name: str) -> Any:
    """Returns the captions of the file beside an image."""
    stem = name.rpartition(".")[0]
    for ending in (".txt", ".json"):
      path = untrusted.inside(self._root, stem + ending)
      if not path.exists():
        continue
      data = untrusted.read(path, _MAX_CELL)
      if ending == ".txt":
        return tuple(filter(str.strip, untrusted.text(data).splitlines()))
      return untrusted.captions(untrusted.parse(data), self.captions)
    raise Drop("no caption file")


def _grouped(
  rows: Any, image: str, columns: tuple[str, ...]
) -> dict[str | int, list[str]]:
  """Returns image -> captions of a table's rows, in the order of the first ones."""
  found: dict[str | int, list[str]] = {}
  header: list[str] = next(rows, [])
  missing = [c for c in (image, *columns) if c not in header]
  if missing:
    raise ValueError(
      f"config.data.options.table has no column {missing}, but {header}: set "
      "config.data.options.image and .captions"
    )
  at, texts = header.index(image), [header.index(c) for c in columns]
  while True:
    before = rows.line_num
    try:
      row = next(rows)
    except StopIteration:
      return found
    except csv.Error:  # a cell over csv's limit
      row = None
    if row is not None and len(row) == len(header):
      found.setdefault(row[at], []).extend(row[t] for t in texts)
    elif row != []:
      # Each line counts: quotes that do not close make one row of many.
      found |= {line: [] for line in range(before, rows.line_num)}
