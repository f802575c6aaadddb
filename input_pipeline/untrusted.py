"""What a data set says of itself, taken with care: file names, texts, JSON.

Nobody has checked the words of a data set. A name may lead out of its folder, a text
may not be UTF-8, a file may be missing, a pipe, or larger than the memory: each of
these is a `Drop` with a reason of its own here, and nothing is ever unpickled or run.
"""

from collections.abc import Mapping, Sequence
import json
import os
import re
from typing import Any

from etils import epath

from input_pipeline.drop import Drop

MAX_BYTES = 2**28  # of one file or member
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
UNSAFE = ("pkl", "pickle", "pyd", "pt", "pth", "joblib")  # reading one runs its code


def matches(path: str, split: str) -> list[str]:
  """Returns the files that a path or a glob of the config names, sorted.

  A path that is there is no glob, whatever brackets are in it.

  Raises:
    FileNotFoundError: none; says which config key.
    ValueError: "**", which no bucket could answer.
    ModuleNotFoundError: the library for a bucket, gcsfs or s3fs, is missing.
  """
  path = path.replace("{split}", split)
  folder, _, name = path.rpartition("/")
  folder = folder or ("/" if path.startswith("/") else ".")
  try:
    if epath.Path(path).exists():
      return [str(epath.Path(path))]
    if "**" in path:
      raise ValueError(
        f"config.data.options.paths: {path!r} has '**', which is not searched for: "
        "write a '*' for each folder on the way, as in 'data/*/*.tar'"
      )
    found = sorted(str(p) for p in epath.Path(folder).glob(name))
  except ImportError as e:
    raise ModuleNotFoundError(f"config.data.options.paths: {path}: {e}") from e
  if not found:
    hint, stars = "", re.sub(r"\{[^{}]*\}", "*", path)
    if stars != path:
      hint = f": braces are not expanded; write {stars!r}, or a list of paths"
    raise FileNotFoundError(
      f"config.data.options.paths: no file matches {path!r}{hint}"
    )
  return found


def all_matches(paths: str | Sequence[str], split: str) -> tuple[str, ...]:
  """Returns the files of one path or of several, in the order of the paths.

  Raises:
    FileNotFoundError: a path that matches no file, or no path at all.
  """
  given = (paths,) if isinstance(paths, str) else tuple(paths)
  if not given:
    raise FileNotFoundError("config.data.options.paths is empty")
  return tuple(file for path in given for file in matches(path, split))


def refuse_compressed(path: str, start: bytes) -> None:
  """Raises ValueError for a file that begins as gzip, bzip2, xz or zstd."""
  if start.startswith(_COMPRESSED):
    raise ValueError(
      f"{path} is compressed, which leaves no random access: unpack it first (images "
      "in it are compressed already)"
    )


def is_safe(name: str) -> bool:
  """Returns whether a relative name stays below the folder that it is read from."""
  drive = ":" in name.split("/", 1)[0]  # "C:x", and "http://x"
  odd = any(c in name for c in "\\\0")
  return not (not name or drive or odd or name[0] == "/" or ".." in name.split("/"))


def inside(root: str, name: Any) -> epath.Path:
  """Returns the path of a file that the data names, below `root`.

  Raises:
    Drop: "no path", "path is not UTF-8", or "path outside the root", which a symbolic
      link that leads out of it is as well.
  """
  if not isinstance(name, str) or not name.strip():
    raise Drop("no path")
  if not is_utf8(name):
    raise Drop("path is not UTF-8")
  if not is_safe(name):
    raise Drop("path outside the root")
  path = epath.Path(root) / name
  if "://" not in str(root):  # a local one: follow the links
    real = os.path.realpath(root)
    if os.path.commonpath([real, os.path.realpath(path)]) != real:
      raise Drop("path outside the root")
  return path


def is_file(path: epath.Path) -> bool:
  """Returns whether it is a regular file: no folder, and no pipe, which would block."""
  # epath says yes to pipes.
  return path.is_file() if "://" in str(path) else os.path.isfile(path)


def below(root: str) -> list[str]:
  """Returns the names of the files below a folder, sorted; links to folders are not."""
  if "://" in root:
    names, folders = [], [epath.Path(root)]
    while folders:
      inner = list(folders.pop().iterdir())
      folders += [p for p in inner if p.is_dir()]
      names += [str(p.relative_to(root)) for p in inner if not p.is_dir()]
    return sorted(names)
  found = (os.path.join(at, name) for at, _, names in os.walk(root) for name in names)
  return sorted(os.path.relpath(path, root) for path in found if os.path.isfile(path))


def read(path: epath.Path, limit: int = MAX_BYTES) -> bytes:
  """Returns the bytes of a regular file.

  Raises:
    Drop: "missing file", "file too large" or "unreadable file".
  """
  try:
    if not is_file(path):
      raise Drop("missing file")
    with path.open("rb") as file:
      data = file.read(limit + 1)
  except OSError as e:
    raise Drop("unreadable file") from e
  if len(data) > limit:
    raise Drop("file too large")
  return data


def is_utf8(text: str) -> bool:
  """Returns whether a str can be written: JSON can hold halves of characters."""
  try:
    text.encode()
  except UnicodeEncodeError:
    return False
  return True


def text(data: bytes) -> str:
  """Returns UTF-8 bytes as text, without a byte order mark.

  Raises:
    Drop: "text is not UTF-8".
  """
  try:
    return data.decode("utf-8-sig")
  except UnicodeDecodeError as e:
    raise Drop("text is not UTF-8") from e


def parse(data: bytes) -> Any:
  """Returns the value of some JSON.

  Raises:
    Drop: "text is not UTF-8" or "broken JSON".
  """
  try:
    return json.loads(text(data))
  except (ValueError, RecursionError) as e:
    raise Drop("broken JSON") from e


def field(value: Any, name: str) -> Any:
  """Returns a field of parsed JSON; "meta.title" is one inside another.

  Raises:
    Drop: "no <name>".
  """
  for part in name.split("."):
    if not isinstance(value, Mapping) or value.get(part) is None:
      raise Drop(f"no {name}")
    value = value[part]
  return value


def captions(value: Any, names: str | Sequence[str]) -> Any:
  """Returns what one field holds, or the texts of those of several that are there.

  Raises:
    Drop: "no <names>".
  """
  if isinstance(names, str):
    return plain(field(value, names))
  found: list[Any] = []
  for name in names:
    try:
      texts = field(value, name)
    except Drop:
      continue
    found += texts if isinstance(texts, list | tuple) else [texts]
  if not found:
    raise Drop(f"no {' or '.join(names)}")
  return plain(found)


def plain(value: Any) -> Any:
  """Returns JSON with tuples for lists, as an ArrayRecord gives it back."""
  if isinstance(value, list | tuple):
    return tuple(plain(v) for v in value)
  if isinstance(value, Mapping):
    return {k: plain(v) for k, v in value.items()}
  return value


def pairs(given: Any) -> tuple[tuple[str, str], ...]:
  """Returns an option that is a mapping, or pairs, as pairs: hashable, picklable."""
  items = given.items() if hasattr(given, "items") else given
  return tuple((str(a), str(b)) for a, b in items)
