"""A folder of images for each class, as ImageNet's: train/n01440764/1.JPEG.

c.data.source = "class_folders"
c.data.options = dict(root="imagenet/{split}", names="imagenet/LOC_synset_mapping.txt")
"""

from collections.abc import Mapping
import dataclasses
import functools
import os
from typing import Any

from etils import epath

from input_pipeline import untrusted
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example

_MAX_NAMES = 2**26


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """The images below a folder, labelled by the folder in it that they lie in.

  The classes are the folders of all splits that hold images, sorted, so that a class
  which one split lacks does not move the labels of the others. What is hidden, its name
  or that of a folder above it beginning with ".", is left out. The caption of an image
  is the name of its class. Drops "missing file", "file too large", "unreadable file",
  "path outside the root" and "path is not UTF-8".

  Attributes:
    root: the folder of a split; "{split}" is replaced.
    split: for "{split}" in root.
    label: what the label is called: examples hold `label_<label>`.
    names: a text file with the classes' names: lines "n01440764 tench, Tinca tinca" (a
      folder, then names, of which the first is taken), or a name a line in the order of
      the folders; "" takes the folders' own.
    extensions: of images.
    max_bytes: larger images drop out.

  Raises:
    FileNotFoundError: no such folder or file.
    ValueError: no folder that holds images, or names that do not fit the folders.
  """

  root: str
  split: str = "train"
  label: str = "class"
  names: str = ""
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
  def _files(self) -> tuple[str, ...]:
    return tuple(n for n in untrusted.below(self._root) if "/" in n and self._shows(n))

  def _shows(self, name: str) -> bool:
    """Returns whether a file is an image that is not hidden."""
    endings = tuple(f".{e.lower()}" for e in self.extensions)
    hidden = name.startswith(".") or "/." in name
    return name.lower().endswith(endings) and not hidden

  @functools.cached_property
  def _folders(self) -> dict[str, int]:
    """Returns class folder -> label."""
    names = {name.partition("/")[0] for name in self._files}
    roots = []
    before, mark, after = self.root.partition("{split}")
    if mark and not after.strip("/") and (not before or before.endswith("/")):
      roots = [p for p in epath.Path(before or ".").iterdir() if p.is_dir()]
    for root in (p for p in roots if not p.name.startswith(".")):
      for folder in root.iterdir():
        if folder.name not in names and self._is_class(folder):
          names.add(folder.name)
    if not names:
      raise ValueError(
        f"config.data.options.root = {self._root!r} holds no folders of images: "
        "expected one for each class; image_folder reads images with captions"
      )
    return {name: i for i, name in enumerate(sorted(names))}

  def _is_class(self, folder: epath.Path) -> bool:
    """Returns whether images lie in what a split holds; links are as in `below`."""
    if os.path.islink(str(folder)) or not folder.is_dir():
      return False
    return any(self._shows(f"{folder.name}/{n}") for n in untrusted.below(str(folder)))

  @functools.cached_property
  def _names(self) -> tuple[str, ...]:
    if not self.names:
      return tuple(self._folders)
    return read_names(self.names, tuple(self._folders))

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns the label's name -> the names of the classes."""
    return {self.label: self._names}

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(f"image {i} of {len(self)}")
    name = self._files[i]
    path = untrusted.inside(self._root, name)
    label = self._folders[name.partition("/")[0]]
    return {
      "image_bytes": untrusted.read(path, self.max_bytes),
      "captions": (self._names[label],),
      f"label_{self.label}": label,
    }


def read_names(file: str, folders: tuple[str, ...] = ()) -> tuple[str, ...]:
  """Returns the classes' names in a text file, in the order of the folders.

  Args:
    file: a name a line, or a folder and its names, with commas between them.
    folders: sorted; () takes the lines as they are.

  Raises:
    FileNotFoundError: no such file.
    ValueError: an empty one, or lines that do not fit the folders.
  """
  try:
    data = untrusted.text(untrusted.read(epath.Path(file), _MAX_NAMES))
  except Drop as e:
    raise FileNotFoundError(f"names of classes, {file!r}: {e.reason}") from e
  lines = [line.strip() for line in data.splitlines() if line.strip()]
  if not lines:
    raise ValueError(f"{file!r} is empty: expected the name of a class in each line")
  split = [line.partition(" ") for line in lines]
  said = {folder: names.split(",")[0].strip() for folder, _, names in split}
  if folders and set(folders) <= said.keys() and all(said[f] for f in folders):
    return tuple(said[f] for f in folders)
  if folders and len(lines) != len(folders):
    raise ValueError(
      f"{file!r} names {len(lines)} classes, but there are {len(folders)} folders, "
      f"{', '.join(folders[:3])}, ...: expected a line each"
    )
  return tuple(lines)
