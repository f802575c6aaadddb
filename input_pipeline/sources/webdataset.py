"""WebDataset tar shards, read at random: each is indexed once, headers only.

c.data.source = "webdataset"
c.data.options = dict(paths="pairs/{split}-*.tar")
"""

from collections.abc import Mapping
from concurrent import futures
import dataclasses
import functools
from typing import Any
import zlib

from etils import epath
import numpy as np

from input_pipeline import tar_index, untrusted
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example

_INDEXERS = 8  # threads


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """The samples of tar shards, in order: shards need not match hosts or workers.

  A member's extension says what it becomes: txt is text, json a value, cls an integer,
  anything else bytes. Members that nobody asked for are not read, and nothing is ever
  written out of a tar or unpickled. Drops the reasons of `tar_index.REASONS`, "no
  <extension>", "member too large", "text is not UTF-8", "broken JSON", "not a class",
  "changed tar" and "unreadable tar".

  Attributes:
    paths: a tar, a glob, or several of either; "{split}" is replaced.
    split: for "{split}" in paths.
    members: extension -> key of the example, as a mapping or as pairs. "jpg;png" takes
      the first that is there; "json:meta.title" a field of the JSON.
    index: folder of the indices; "" is beside the shards.
    max_bytes: larger members drop out.

  Raises:
    FileNotFoundError: a path that matches no file.
    ValueError: a compressed shard, an index that cannot be written, or a member whose
      reading would run its code (pickles).
  """

  paths: str | tuple[str, ...]
  split: str = "train"
  members: Any = (
    ("jpg;jpeg;png;webp;gif", "image_bytes"),
    ("txt", "captions"),
  )
  index: str = ""
  max_bytes: int = untrusted.MAX_BYTES

  def __post_init__(self):
    object.__setattr__(self, "members", untrusted.pairs(self.members))
    for wanted, _ in self.members:
      for extension in wanted.partition(":")[0].lower().split(";"):
        if extension.rpartition(".")[2] in untrusted.UNSAFE:
          raise ValueError(
            f"config.data.options.members asks for .{extension}: reading one can run "
            "its code, which nothing here does. Store arrays as safetensors or images"
          )
    _ = self._shards  # raises where there are none

  def __getstate__(self) -> dict[str, Any]:
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

  @functools.cached_property
  def _shards(self) -> tuple[str, ...]:
    return untrusted.all_matches(self.paths, self.split)

  @functools.cached_property
  def _indices(self) -> tuple[tar_index.Index, ...]:
    # Threads, for shards in buckets: there each header is waited for.
    with futures.ThreadPoolExecutor(_INDEXERS) as pool:
      load = functools.partial(tar_index.load, folder=self.index)
      return tuple(pool.map(load, self._shards))

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    return np.cumsum([len(index.refused) for index in self._indices])

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns no names: a tar holds classes as numbers."""
    return {}

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(f"sample {i} of {len(self)}")
    shard = int(np.searchsorted(self._ends, i, side="right"))
    index = self._indices[shard]
    sample = i - int(self._ends[shard]) + len(index.refused)
    if index.refused[sample]:
      raise Drop(tar_index.REASONS[index.refused[sample] - 1])
    there = index.members(sample)
    example = {}
    try:
      with epath.Path(self._shards[shard]).open("rb") as file:
        for wanted, key in self.members:
          extensions, _, field = wanted.partition(":")
          found = [e for e in extensions.lower().split(";") if e in there]
          if not found:
            raise Drop(f"no {extensions}")
          data = self._read(file, index, there[found[0]])
          example[key] = _value(data, found[0].rpartition(".")[2], field)
    except OSError as e:
      raise Drop("unreadable tar") from e
    return example

  def _read(self, file: Any, index: tar_index.Index, member: int) -> bytes:
    size = int(index.sizes[member])
    if size > self.max_bytes:
      raise Drop("member too large")
    file.seek(int(index.offsets[member]) - tar_index.BLOCK)
    data = file.read(tar_index.BLOCK + size)
    header, data = data[: tar_index.BLOCK], data[tar_index.BLOCK :]
    if zlib.crc32(header) != index.checks[member] or len(data) != size:
      raise Drop("changed tar")
    return data


def _value(data: bytes, extension: str, field: str) -> Any:
  if extension == "json":
    value = untrusted.parse(data)
    return untrusted.plain(untrusted.field(value, field) if field else value)
  if extension == "txt":
    return untrusted.text(data)
  if extension == "cls":
    try:
      return int(data[:32])
    except ValueError as e:
      raise Drop("not a class") from e
  return data
