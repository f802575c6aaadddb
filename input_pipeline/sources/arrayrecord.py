"""ArrayRecord files whose records are `input_pipeline.records`: your own data.

from input_pipeline.sources import arrayrecord
arrayrecord.write_records("pairs/train.arrayrecord", (
    {"image_bytes": jpeg, "captions": {"en": ["a red house"]}} for ...), shards=8)

c.data.source = "arrayrecord"
c.data.options = dict(paths="pairs/{split}.arrayrecord*")
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import json
from typing import Any

from array_record.python import array_record_module
from etils import epath
import grain

from input_pipeline import records, untrusted
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example

_CLASSES = "classes.json"
_SCHEMES = ("gs",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """The examples of one or more ArrayRecord files, in order of their names.

  Attributes:
    paths: a file, a glob, or several of either; "{split}" is replaced.
    split: for "{split}" in paths.

  Raises:
    FileNotFoundError: a path that matches no file.
    ValueError: a bucket that the array_record library does not read.
  """

  paths: str | tuple[str, ...]
  split: str = "train"

  def __post_init__(self):
    for file in self._files:  # raises where there are none
      scheme, remote, _ = file.partition("://")
      if remote and scheme not in _SCHEMES:
        raise ValueError(
          f"config.data.options.paths: {file}: the array_record library reads local "
          f"files and gs://, not {scheme}://. Copy it here or mount the bucket; the "
          "sources jsonl, webdataset, parquet and image_folder read any bucket"
        )

  def __getstate__(self) -> dict[str, Any]:
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

  @functools.cached_property
  def _files(self) -> tuple[str, ...]:
    return untrusted.all_matches(self.paths, self.split)

  @functools.cached_property
  def _reader(self) -> grain.sources.ArrayRecordDataSource:
    return grain.sources.ArrayRecordDataSource(list(self._files))

  @functools.cached_property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns label name -> class names, from classes.json beside the first file."""
    path = epath.Path(self._files[0]).parent / _CLASSES
    if not path.exists():
      return {}
    return {k: tuple(v) for k, v in json.loads(path.read_text()).items()}

  def __len__(self) -> int:
    return len(self._reader)

  def __getitem__(self, i: int) -> Example:
    # array_record reports damage as any of several types; a record that it cannot
    # return is lost whatever the type.
    try:
      record = self._reader[i]
    except (IndexError, FileNotFoundError):
      raise
    except Exception as e:
      raise Drop("unreadable record") from e
    try:
      return records.decode(record)
    except ValueError as e:
      raise Drop("corrupt record") from e


def write_records(
  path: str,
  examples: Iterable[Mapping[str, Any]],
  *,
  shards: int = 1,
  classes: Mapping[str, Iterable[str]] | None = None,
) -> list[str]:
  """Writes examples to `path`, or to `path`-00000-of-00008 and so on, round robin.

  Args:
    path: of the file, or the common beginning of the shards.
    examples: each a mapping of arrays, bytes and JSON values; see `records.encode`.
    shards: number of files.
    classes: label name -> class names, for `Source.classes`.

  Returns:
    The files.
  """
  target = epath.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  names = [str(path)]
  if shards > 1:
    names = [f"{path}-{i:05d}-of-{shards:05d}" for i in range(shards)]
  # One record a group: reading a random one decompresses no neighbours.
  writers = [array_record_module.ArrayRecordWriter(n, "group_size:1") for n in names]
  try:
    for i, example in enumerate(examples):
      writers[i % shards].write(records.encode(example))
  finally:
    for writer in writers:
      writer.close()
  if classes is not None:
    named = {k: list(v) for k, v in classes.items()}
    (target.parent / _CLASSES).write_text(json.dumps(named, ensure_ascii=False))
  return names
