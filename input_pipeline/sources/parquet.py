"""Parquet files, and Hugging Face `datasets` folders on disk (`save_to_disk`).

c.data.source = "parquet"
c.data.options = dict(
    paths="pairs/{split}-*.parquet", columns=dict(image="image_bytes", text="captions"))

Needs pyarrow, not the `datasets` package. Parquet is made for scans: each example at
random costs a row group. Convert large ones with `python -m tools.prepare_data`.
"""

import bisect
from collections.abc import Mapping
import dataclasses
import functools
import itertools
import json
import threading
from typing import Any

from etils import epath
import numpy as np

from input_pipeline import untrusted
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """The rows of Parquet files or of a datasets folder, in order.

  Image columns (a struct of bytes and path) become bytes, lists tuples, and `classes`
  holds the names of ClassLabel columns that are kept as label_<name>. Drops "unreadable
  row", "no <column>", and of images that are stored as paths "no path", "path outside
  the root", "missing file", "file too large" and "unreadable file".

  Attributes:
    paths: Parquet files or a datasets folder: one, a glob, or several; "{split}" is
      replaced. Of a folder of several splits, `split` is taken.
    split: for "{split}" in paths.
    columns: column -> key of the example, as a mapping or as pairs; () keeps all.
    root: below which the images lie that are stored as paths; "" is that of the file.
    cache: row groups that are kept decoded.

  Raises:
    FileNotFoundError: a path that matches no file.
    ModuleNotFoundError: pyarrow is not installed.
    ValueError: a file that is no Parquet or Arrow, or a column that it does not have.
  """

  paths: str | tuple[str, ...]
  split: str = "train"
  columns: Any = ()
  root: str = ""
  cache: int = 4

  def __post_init__(self):
    object.__setattr__(self, "columns", untrusted.pairs(self.columns))
    there = self._tables[0].names
    missing = [c for c, _ in self.columns if c not in there]
    if missing:
      raise ValueError(
        f"config.data.options.columns: {self._files[0]} has no {missing}, but {there}"
      )

  def __getstate__(self) -> dict[str, Any]:
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

  @functools.cached_property
  def _files(self) -> tuple[str, ...]:
    found = untrusted.all_matches(self.paths, self.split)
    return tuple(itertools.chain(*(_data_files(p, self.split) for p in found)))

  @functools.cached_property
  def _tables(self) -> tuple["_Table", ...]:
    return tuple(_open(file) for file in self._files)

  @functools.cached_property
  def _ends(self) -> list[int]:
    """Returns the rows up to the end of each part of each file."""
    return list(itertools.accumulate(n for t in self._tables for n in t.rows))

  @functools.cached_property
  def _parts(self) -> list[tuple[int, int]]:
    """Returns (file, part of it) of each part."""
    return [(f, p) for f, t in enumerate(self._tables) for p in range(len(t.rows))]

  @functools.cached_property
  def _part(self) -> Any:
    wanted = [column for column, _ in self.columns] or list(self._tables[0].names)
    return functools.lru_cache(self.cache)(
      lambda file, part: self._tables[file].read(part, wanted)
    )

  @functools.cached_property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns label name -> class names, of ClassLabels kept as label_<name>."""
    features = self._tables[0].features
    columns = self.columns or tuple((name, name) for name in self._tables[0].names)
    found = {}
    for column, key in columns:
      feature = features.get(column)
      names = feature.get("names") if isinstance(feature, Mapping) else None
      if names and key.startswith("label_"):
        found[key.removeprefix("label_")] = tuple(map(str, names))
    return found

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(f"row {i} of {len(self)}")
    part = bisect.bisect_right(self._ends, i)
    file, within = self._parts[part]
    row = i - (self._ends[part - 1] if part else 0)
    # pyarrow has a type of its own for each way in which a file can be damaged.
    try:
      table = self._part(file, within).slice(row, 1)
      table.validate(full=True)  # offsets that lead out of the file, and UTF-8
      (values,) = table.to_pylist()
    except Exception as e:
      raise Drop("unreadable row") from e
    root = self.root or str(epath.Path(self._files[file]).parent)
    columns = self.columns or tuple((name, name) for name in values)
    return {key: _value(values.get(name), name, root) for name, key in columns}


@dataclasses.dataclass(frozen=True)
class _Table:
  """An open file: its columns, the rows of its parts, and how to read a part."""

  names: list[str]
  rows: list[int]
  features: Mapping[str, Any]
  read: Any


def _value(value: Any, name: str, root: str) -> Any:
  if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
    if value["bytes"] is not None:
      return value["bytes"]
    return untrusted.read(untrusted.inside(root, value["path"]))
  if value is None:
    raise Drop(f"no {name}")
  if isinstance(value, list) and value and isinstance(value[0], int | float):
    return np.asarray(value)
  return untrusted.plain(value)


def _pyarrow() -> Any:
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as e:
    raise ModuleNotFoundError(
      'config.data.source = "parquet" needs pyarrow: pip install "pyarrow>=15"'
    ) from e
  return pyarrow


def _data_files(path: str, split: str) -> list[str]:
  """Returns the file itself, or the Arrow files of a datasets folder."""
  folder = epath.Path(path)
  if not folder.is_dir():
    return [path]
  if (folder / "dataset_dict.json").exists():
    folder = folder / split
  state = folder / "state.json"
  if not state.exists():
    raise FileNotFoundError(
      f"config.data.options.paths: {str(folder)!r} is no datasets folder of "
      f"save_to_disk (no state.json) for split {split!r}; of Parquet, name the files"
    )
  try:
    given = json.loads(state.read_text())
    names = [entry["filename"] for entry in given["_data_files"]]
    if given.get("_indices_files"):
      raise ValueError("it has indices: save it after flatten_indices()")
    return [str(untrusted.inside(str(folder), name)) for name in names]
  except (ValueError, KeyError, TypeError, AttributeError, Drop) as e:
    raise ValueError(f"{state} is not of a datasets folder: {e}") from e


def _open(path: str) -> _Table:
  pa = _pyarrow()
  try:
    if path.endswith(".arrow"):
      return _open_arrow(pa, path)
    file = pa.parquet.ParquetFile(_opened(pa, path))
    groups = range(file.metadata.num_row_groups)
    rows = [file.metadata.row_group(i).num_rows for i in groups]
    schema = file.schema_arrow
    lock = threading.Lock()

    def read(i: int, names: list[str]) -> Any:
      # pyarrow's readers crash or hang if two threads read from one at once.
      with lock:
        return file.read_row_group(i, columns=names, use_threads=False)

    return _Table(list(schema.names), rows, _features(schema), read)
  except (pa.ArrowException, OSError, ValueError) as e:
    raise ValueError(f"{path} is neither Parquet nor an Arrow stream: {e}") from e


def _open_arrow(pa: Any, path: str) -> _Table:
  """Opens the stream of record batches that `datasets` writes; mapped, not read."""
  stream = pa.ipc.open_stream(_opened(pa, path))
  batches = list(stream)
  rows = [batch.num_rows for batch in batches]
  return _Table(
    list(stream.schema.names),
    rows,
    _features(stream.schema),
    lambda i, names: batches[i].select(names),
  )


def _opened(pa: Any, path: str) -> Any:
  return epath.Path(path).open("rb") if "://" in path else pa.memory_map(path)


def _features(schema: Any) -> Mapping[str, Any]:
  """Returns what `datasets` wrote of the columns into the schema, if it did."""
  try:
    given = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features = given["info"]["features"]
    return features if isinstance(features, Mapping) else {}
  except (ValueError, KeyError, TypeError):
    return {}
