"""Data sets that arrive inside ordinary packages: what one is, and how it is read.

Each file of input_pipeline/datasets has a RECIPE and a Source. The data are read where
a package manager put them; none of them are part of this repository.

python -m tools.prepare_data --recipe tuxpaint --root stamps --split all --out prepared
"""

from collections.abc import Hashable, Mapping, Sequence
import dataclasses
import functools
import gzip
import hashlib
import importlib.util
import pathlib
from typing import Any, ClassVar, Literal, NamedTuple
import zlib

from etils import epath

from input_pipeline import splits, untrusted
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example
from model import catalogue

MAX_TABLE = 2**30  # bytes of one file that lists the examples
# What the parsers of tables raise (SyntaxError: XML), and what reads past their rows.
_DAMAGE = (ValueError, LookupError, TypeError, SyntaxError, Drop)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """What a data set is, who made it, on what terms, and how to get it.

  Attributes:
    title: in a few words.
    client: the package manager that has it.
    package: with its version, as the package manager writes it.
    folder: of the data, below where the package was installed or unpacked.
    licence: of the data.
    attribution: to be given where the data, or pictures of them, are shown.
    keys: what an example holds besides id and family.
    rule: which examples are held out.
    traps: what to know before trusting a figure.
    rooted: whether it may lie below any folder, or has to be installed.
  """

  title: str
  client: Literal["pip", "apt", "npm"]
  package: str
  folder: str
  licence: str
  attribution: str
  keys: str
  rule: str
  traps: str = ""
  rooted: bool = True

  @property
  def get(self) -> str:
    """Returns the command that puts the package below ROOT; none needs root rights."""
    if self.client == "pip":
      target = "--target ROOT " if self.rooted else ""
      return f"pip install --no-deps {target}{self.package}"
    if self.client == "npm":
      return f"npm install --ignore-scripts --prefix ROOT {self.package}"
    name = self.package.partition("=")[0]
    return f"apt-get download {self.package} && dpkg -x {name}_*.deb ROOT"

  def place(self, root: str) -> epath.Path:
    """Returns the folder of the data; without a root, where they are by default.

    Raises:
      FileNotFoundError: it is not there; says how to get it.
    """
    parent: str | None = root or {"apt": "/", "npm": ".", "pip": ""}[self.client]
    if not parent:
      module = self.folder.partition("/")[0]
      spec = importlib.util.find_spec(module)
      found = spec.origin if spec else None
      parent = str(pathlib.Path(found).parents[1]) if found else None
    if parent is None or not (epath.Path(parent) / self.folder).is_dir():
      raise FileNotFoundError(
        f"{self.title}: no folder {self.folder} below "
        f"{parent or 'the installed packages'}: {self.get}; then set "
        "config.data.options.root (--root of tools.prepare_data) to ROOT"
      )
    return epath.Path(parent) / self.folder


class Entry(NamedTuple):
  """One example before it is read.

  Attributes:
    value: what the reader needs to make it.
    family: no two splits share one.
    part: the split that the set itself gives it, or "" to be dealt by the seed.
  """

  value: Any
  family: Hashable
  part: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Installed:
  """The examples of a data set in a package, in a fixed order; a base of `Source`s.

  A subclass sets `about` and defines `entries` and `example`. Drops "broken entry".

  Attributes:
    root: where the package was installed or unpacked; "" is where its package manager
      puts it: among the Python packages, /, or the working directory (npm).
    split: "train" | "validation" | "test" | "all".
    seed: of the split, where the set itself gives none.
    test_share: of the examples, that are held out where the set itself says nothing.
    validation_share: of the same, out of what would be train.

  Raises:
    FileNotFoundError: the package is not there; says how to get it.
    ValueError: an unknown split, shares that leave nothing to train on, or tables that
      are damaged.
  """

  about: ClassVar[Recipe]

  root: str = ""
  split: str = "train"
  seed: int = 0
  test_share: float = 0.2
  validation_share: float = 0.0

  def __post_init__(self):
    known = ["train", "validation", "test", "all"]
    if self.split not in known:
      raise ValueError(
        f"config.data.split: no {self.split!r}; "
        f"{catalogue.near_misses(self.split, known)}"
      )
    splits.check("train", self.test_share, self.validation_share)
    _ = self.folder  # raises where it is not there

  def __getstate__(self) -> dict[str, Any]:
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

  def entries(self) -> Sequence[Entry]:
    """Returns all examples before they are read, whatever the split."""
    raise NotImplementedError

  def wanted(self, value: Any) -> bool:
    """Returns whether the options ask for an entry: they move none to another split."""
    return True

  def example(self, value: Any) -> Example:
    """Returns the example of an entry's value, or raises `Drop`."""
    raise NotImplementedError

  @functools.cached_property
  def folder(self) -> epath.Path:
    """Returns the folder of the data."""
    return self.about.place(self.root)

  @functools.cached_property
  def _families(self) -> Mapping[Hashable, int]:
    """Returns family -> its number, which does not depend on the split."""
    ordered = dict.fromkeys(entry.family for entry in self._entries)
    return {family: i for i, family in enumerate(ordered)}

  @functools.cached_property
  def _entries(self) -> Sequence[Entry]:
    try:
      entries = self.entries()
    except _DAMAGE as e:
      raise ValueError(
        f"{self.about.title}: {self.folder} is not as {self.about.package} has it "
        f"({type(e).__name__}: {e}); get it again: {self.about.get}"
      ) from e
    if not entries:
      raise FileNotFoundError(
        f"{self.about.title}: nothing in {self.folder}: {self.about.get}"
      )
    return entries

  @functools.cached_property
  def _chosen(self) -> Sequence[Entry]:
    wanted = [e for e in self._entries if self.wanted(e.value)]
    if self.split == "all":
      return wanted
    given = {entry.part for entry in self._entries} - {""}
    test = 0.0 if "test" in given else self.test_share
    validation = 0.0 if "validation" in given else self.validation_share
    # What the set holds out stays so; the seed deals the rest, less what it need not.
    free = [e.family for e in self._entries if e.part in ("", "train")]
    dealt = splits.held_out(free, self.seed, test, validation)
    chosen = [
      e
      for e in wanted
      if (dealt[e.family] if e.part in ("", "train") else e.part) == self.split
    ]
    if not chosen:
      raise ValueError(
        f"the split {self.split!r} of {self.about.title} is empty: set "
        f"config.data.options.{self.split}_share to what is to be held out, e.g. 0.1"
      )
    return chosen

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns label name -> the names of its classes."""
    return {}

  def __len__(self) -> int:
    return len(self._chosen)

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(f"example {i} of {len(self)}")
    entry = self._chosen[i]
    family = self._families[entry.family]
    try:
      return {"family": family, **self.example(entry.value)}
    except Drop:
      raise
    except _DAMAGE as e:
      raise Drop("broken entry") from e

  def read(self, name: str, limit: int = untrusted.MAX_BYTES) -> bytes:
    """Returns the bytes of a file below the folder, or raises `Drop`."""
    return untrusted.read(untrusted.inside(str(self.folder), name), limit)

  def table(self, name: str) -> bytes:
    """Returns the bytes of a file that lists examples, unpacked if it is a .gz.

    Raises:
      FileNotFoundError: it is missing or unreadable.
      ValueError: a .gz that is damaged.
    """
    try:
      data = self.read(name, MAX_TABLE)
      return gzip.decompress(data) if name.endswith(".gz") else data
    except Drop as e:
      raise FileNotFoundError(f"{self.folder / name}: {e.reason}") from e
    except (OSError, EOFError, zlib.error) as e:
      raise ValueError(f"{self.folder / name} is damaged: {e}") from e


def fingerprint(data: bytes) -> str:
  """Returns a short name of some bytes, as the family of their copies."""
  return hashlib.blake2b(data, digest_size=8).hexdigest()
