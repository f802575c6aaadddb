"""The index of a tar shard: where its samples lie, so that any one is read by itself.

As in WebDataset, files in a row whose names agree up to the first dot of their last
part are one sample, and the rest of the name is the extension. Only headers are read. A
shard whose middle is damaged is picked up again at the next header that is whole; each
damaged place stands in the index as a sample that drops out, and is counted so.
"""

from collections.abc import Iterator
import dataclasses
import io
import tarfile
from typing import Any, BinaryIO, NamedTuple
import zlib

from etils import epath
import numpy as np

from input_pipeline import atomic, records, untrusted

BLOCK = 512
ENDING = ".index"
_VERSION = 1
_MAX_NAME = 2**16  # bytes of a long name or of extended headers
REASONS = (
  "damaged tar",
  "unsafe path in a tar",
  "link in a tar",
  "special file in a tar",
  "two members of one extension",
)
DAMAGED, UNSAFE, LINK, SPECIAL, TWICE = range(1, 6)
_LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
_DEVICES = (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
_NO_DATA = (tarfile.DIRTYPE, *_LINKS, *_DEVICES)
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)


@dataclasses.dataclass(frozen=True)
class Index:
  """Where the samples of one shard lie.

  Attributes:
    starts: i64[samples + 1]; the members of sample i are starts[i]:starts[i + 1].
    refused: u8[samples]; 0, or what is wrong, a position in REASONS plus one.
    kinds: i64[members], positions in `extensions`.
    offsets: i64[members], bytes to the data, whose header is the block before.
    sizes: i64[members], bytes of data.
    checks: u32[members], CRC-32 of the header: says whether the shard has changed.
    extensions: in lower case, without the first dot.
    length: bytes of the shard.
  """

  starts: np.ndarray
  refused: np.ndarray
  kinds: np.ndarray
  offsets: np.ndarray
  sizes: np.ndarray
  checks: np.ndarray
  extensions: tuple[str, ...]
  length: int

  def members(self, sample: int) -> dict[str, int]:
    """Returns extension -> position of the member."""
    at = range(int(self.starts[sample]), int(self.starts[sample + 1]))
    return {self.extensions[self.kinds[i]]: i for i in at}


class Member(NamedTuple):
  """One member of a tar, or what is wrong with it.

  Attributes:
    name: as in the header, or "" for a damaged place.
    offset: bytes to its data.
    size: bytes.
    check: CRC-32 of its header.
    wrong: 0, or a position in REASONS plus one.
  """

  name: str
  offset: int = 0
  size: int = 0
  check: int = 0
  wrong: int = 0


def load(shard: str, folder: str = "") -> Index:
  """Returns the index of a shard, made and written where there is none that fits.

  Args:
    shard: path of an uncompressed tar.
    folder: of the index; "" is beside the shard.

  Raises:
    ValueError: it is compressed, or the index cannot be written.
  """
  path = epath.Path(shard)
  target = path.parent / f"{path.name}{ENDING}"
  if folder:  # shards of several folders may have one name
    name = f"{path.name}.{zlib.crc32(shard.encode()):08x}{ENDING}"
    target = epath.Path(folder) / name
  length = path.stat().length
  found = _read(target, length)
  if found is not None and not _is_older(found, target, path):
    return found
  with path.open("rb") as file:
    untrusted.refuse_compressed(shard, file.read(8))
    made = build(file, length)
  try:
    atomic.write(str(target), records.encode(_written(made)))
  except OSError as e:
    raise ValueError(
      f"cannot write the index {target} ({e}): set config.data.options.index to a "
      "folder that can be written to"
    ) from e
  return made


def build(file: BinaryIO | io.BytesIO, length: int) -> Index:
  """Returns the index of an open tar of `length` bytes; damage never raises."""
  starts: list[int] = []
  refused: list[int] = []
  columns: list[tuple[int, int, int, int]] = []
  extensions: dict[str, int] = {}
  key, seen = None, set[str]()
  for member in members(file, length):
    name, extension = split(member.name)
    if member.name and not extension and not member.wrong:
      continue  # of no sample: a hidden file, or one without a dot
    if name != key or not member.name:
      starts.append(len(columns))
      refused.append(0)
      key, seen = name, set()
    wrong = member.wrong or (TWICE if extension in seen else 0)
    seen.add(extension)
    if wrong:
      refused[-1] = refused[-1] or wrong
      continue
    kind = extensions.setdefault(extension, len(extensions))
    columns.append((kind, member.offset, member.size, member.check))
  table = np.array(columns, np.int64).reshape(-1, 4)
  return Index(
    starts=np.array([*starts, len(columns)], np.int64),
    refused=np.array(refused, np.uint8),
    kinds=table[:, 0],
    offsets=table[:, 1],
    sizes=table[:, 2],
    checks=table[:, 3].astype(np.uint32),
    extensions=tuple(extensions),
    length=length,
  )


def split(name: str) -> tuple[str, str]:
  """Returns (sample, extension) of a member's name; no extension: of no sample."""
  folder, _, base = name.rpartition("/")
  stem, _, extension = base.partition(".")
  return f"{folder}/{stem}", extension.lower() if stem else ""


def members(file: BinaryIO | io.BytesIO, length: int) -> Iterator[Member]:
  """Yields the files of a tar, its links and special files, and its damaged places.

  Blocks of zeros are skipped wherever they are, so that shards joined with `cat` are
  read to their end.
  """
  at, lost, name, size = 0, False, "", -1
  while at < length:
    file.seek(at)
    block = file.read(BLOCK)
    at += BLOCK
    if not block.strip(b"\0"):
      continue
    header = _header(block, length - at)
    if header is None:
      if not lost:
        yield Member("", wrong=DAMAGED)
      lost, name, size = True, "", -1
      continue
    lost = False
    data, used = at, size if size >= 0 else header.size
    if header.type in _NO_DATA:
      used = 0
    if used > length - at:
      yield Member("", wrong=DAMAGED)
      lost, name, size = True, "", -1
      continue
    at += -(-used // BLOCK) * BLOCK
    if header.type in _LONG or header.type in _EXTENDED:
      file.seek(data)
      given = _extended(file.read(min(used, _MAX_NAME)), header.type)
      name, size = given.get("path", name), int(given.get("size", size))
    elif header.type != tarfile.XGLTYPE:
      if header.type != tarfile.DIRTYPE:
        wrong = _wrong(header.type, name or header.name)
        yield Member(name or header.name, data, used, zlib.crc32(block), wrong)
      name, size = "", -1


def _header(block: bytes, rest: int) -> tarfile.TarInfo | None:
  """Returns the header in a block, if it is one whose data the file can hold."""
  try:
    header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
  except (tarfile.TarError, ValueError):
    return None
  fits = 0 <= header.size <= rest or header.type in _NO_DATA
  return header if fits and header.name else None


def _extended(data: bytes, kind: bytes) -> dict[str, str]:
  """Returns "path" and "size" of what stands before a header, where it gives them."""
  if kind == tarfile.GNUTYPE_LONGLINK:
    return {}
  if kind == tarfile.GNUTYPE_LONGNAME:
    return {"path": data.rstrip(b"\0").decode("utf-8", "surrogateescape")}
  found = {}
  while data:
    length, _, _ = data.partition(b" ")
    if not length.isdigit() or not 0 < int(length[:9]) <= len(data):
      break
    record, data = data[: int(length)], data[int(length) :]
    key, _, value = record[len(length) + 1 : -1].partition(b"=")
    if key == b"path" or (key == b"size" and value.isdigit() and len(value) < 19):
      found[key.decode()] = value.decode("utf-8", "surrogateescape")
  return found


def _wrong(kind: bytes, name: str) -> int:
  if not untrusted.is_safe(name):
    return UNSAFE
  if kind in _LINKS:
    return LINK
  return 0 if kind in tarfile.REGULAR_TYPES and kind != b"S" else SPECIAL


def _written(index: Index) -> dict[str, Any]:
  return dataclasses.asdict(index) | {"version": _VERSION}


def _read(path: epath.Path, length: int) -> Index | None:
  """Returns the index at `path` if it is whole, of this version and of this shard."""
  try:
    values = records.decode(path.read_bytes())
    if values.pop("version") != _VERSION or values["length"] != length:
      return None
    index = Index(**values)
    return index if _is_sound(index) else None
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return None


def _is_older(index: Index, target: epath.Path, shard: epath.Path) -> bool:
  """Returns whether the shard has been made anew, of the same length, since then.

  Padding makes equal lengths likely. One that was only copied has the same headers.
  Times are in whole seconds.
  """
  if not len(index.checks) or shard.stat().mtime < target.stat().mtime:
    return False
  with shard.open("rb") as file:
    for i in {0, len(index.checks) // 2, len(index.checks) - 1}:
      file.seek(int(index.offsets[i]) - BLOCK)
      if zlib.crc32(file.read(BLOCK)) != index.checks[i]:
        return True
  return False


def _is_sound(index: Index) -> bool:
  """Returns whether an index found beside the data points only into its shard."""
  starts, kinds, refused = index.starts, index.kinds, index.refused
  columns = (kinds, index.offsets, index.sizes, index.checks)
  whole = all(x.ndim == 1 and x.dtype.kind in "iu" for x in (starts, refused, *columns))
  if not whole or len({len(x) for x in columns}) != 1 or not len(starts):
    return False
  ends = (starts[0] == 0, starts[-1] == len(kinds), len(starts) == len(refused) + 1)
  inside = (index.offsets >= BLOCK) & (index.sizes >= 0) & (kinds >= 0)
  inside &= index.offsets + index.sizes <= index.length
  inside &= kinds < len(index.extensions)
  ordered = np.all(np.diff(starts) >= 0) and np.all(refused <= len(REASONS))
  return bool(all(ends) and np.all(inside) and ordered)
