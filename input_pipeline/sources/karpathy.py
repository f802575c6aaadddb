"""COCO and Flickr30k in Karpathy's splits: one JSON, and the images beside it.

coco/dataset_coco.json, coco/train2014/..., coco/val2014/...:
  c.data.source = "karpathy"
  c.data.options = dict(path="coco/dataset_coco.json")

Retrieval as papers report it, every caption a query of its own:
  ("retrieval", 0, dict(unique=("image",), source=dict(per="caption", captions=5)))
"""

from collections.abc import Mapping
import dataclasses
import functools
import json
from typing import Any, NamedTuple

from etils import epath

from input_pipeline import untrusted
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example

_MAX_JSON = 2**32
REST = "restval"  # of COCO's validation images, those that papers train on


class _Image(NamedTuple):
  file: Any
  texts: tuple[str, ...]
  id: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """The images of a split with their captions, or a row for each caption.

  Rows of one image have one id. Drops "no captions", "no path", "path outside the
  root", "missing file", "file too large" and "unreadable file".

  Attributes:
    path: of the JSON: {"images": [{"filepath", "filename", "split", "imgid",
      "sentences": [{"raw"}, ...]}, ...]}; "filepath" may be absent.
    split: "train" | "val" | "test".
    root: the folder of the images; "" is the JSON's.
    restval: "train" holds the split "restval" as well.
    per: what a row is: an "image" with all of its captions, or a "caption".
    captions: at most so many of an image, the first ones; 0: all.
    max_bytes: larger images drop out.

  Raises:
    FileNotFoundError: no such JSON.
    ValueError: not this layout, or an unknown `per`.
  """

  path: str
  split: str = "train"
  root: str = ""
  restval: bool = True
  per: str = "image"
  captions: int = 0
  max_bytes: int = untrusted.MAX_BYTES

  def __post_init__(self):
    if self.per not in ("image", "caption"):
      raise ValueError(
        f"config.data.options.per = {self.per!r}: expected 'image' or 'caption'"
      )

  def __getstate__(self) -> dict[str, Any]:
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

  @functools.cached_property
  def _root(self) -> str:
    return self.root or str(epath.Path(self.path).parent)

  @functools.cached_property
  def _images(self) -> tuple[_Image, ...]:
    where = f"config.data.options.path = {self.path!r}"
    try:
      found = untrusted.parse(untrusted.read(epath.Path(self.path), _MAX_JSON))
    except Drop as e:
      kind = ValueError if "JSON" in e.reason or "UTF-8" in e.reason else None
      raise (kind or FileNotFoundError)(f"{where}: {e.reason}") from e
    images = found.get("images") if isinstance(found, Mapping) else None
    if not isinstance(images, list):
      raise ValueError(f"{where} holds no list 'images': not Karpathy's layout")
    wanted = {self.split, REST} if self._with_rest else {self.split}
    entries = [(i, e) for i, e in enumerate(images) if isinstance(e, Mapping)]
    chosen = [(i, e) for i, e in entries if _hashable(e.get("split")) in wanted]
    if not chosen:
      known = sorted({str(e.get("split")) for _, e in entries})
      raise ValueError(f"{where}: split {self.split!r} has no image; there are {known}")
    return tuple(_image(i, e, self.captions or None) for i, e in chosen)

  @property
  def _with_rest(self) -> bool:
    return self.restval and self.split == "train"

  @functools.cached_property
  def _rows(self) -> tuple[tuple[int, int], ...]:
    """Returns (image, caption) of each row; of images, caption 0."""
    each = (
      range(max(len(image.texts), 1) if self.per == "caption" else 1)
      for image in self._images
    )
    return tuple((i, t) for i, texts in enumerate(each) for t in texts)

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns no names: there are no labels."""
    return {}

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(f"row {i} of {len(self)}")
    at, text = self._rows[i]
    image = self._images[at]
    if not image.texts:
      raise Drop("no captions")
    path = untrusted.inside(self._root, image.file)
    texts = image.texts[text : text + 1] if self.per == "caption" else image.texts
    return {
      "image_bytes": untrusted.read(path, self.max_bytes),
      "captions": texts,
      "id": image.id,
    }


def _image(position: int, entry: Mapping[str, Any], most: int | None) -> _Image:
  name, folder = entry.get("filename"), entry.get("filepath")
  if isinstance(name, str) and isinstance(folder, str) and folder:
    name = f"{folder}/{name}"
  found: Any = entry.get("sentences")
  found = found if isinstance(found, list) else []
  raw = [s.get("raw") for s in found if isinstance(s, Mapping)]
  texts = tuple(t for t in raw if isinstance(t, str) and untrusted.is_utf8(t))
  number = entry.get("imgid")
  if not isinstance(number, int) or not 0 <= number < 2**31:
    number = position
  return _Image(name, texts[:most], number)


def _hashable(value: Any) -> Any:
  return value if isinstance(value, str) else json.dumps(value)
