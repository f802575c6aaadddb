"""CLIP_benchmark's webdatasets: test/0.tar, ..., classnames.txt and templates beside.

c.data.source = "clip_benchmark"
c.data.options = dict(root="wds/cifar10")
zero_shot: labels=("class",), split="test",
  templates="wds/cifar10/zeroshot_classification_templates.txt"

Those for retrieval hold several captions in each .txt:
  ("retrieval", 0, dict(unique=("image",), source=dict(captions=5)))
"""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from etils import epath

from input_pipeline import untrusted
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example
from input_pipeline.sources import class_folders, webdataset

IMAGE = ("jpg;jpeg;png;webp", "image_bytes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """The samples of a split: image and class, or image and captions.

  The caption of a classified image is the name of its class. Drops what `webdataset`
  drops, "no such class" and "too few captions".

  Attributes:
    root: the folder with classnames.txt, if the samples have classes, and a folder of
      tars for each split.
    split: "train" | "test", ....
    label: what the label is called: examples hold `label_<label>`.
    captions: a row for each of the first so many captions of an image, all with its id;
      0: a row for each image, with all of them.
    index: folder of the tars' indices; "" is beside them.
    max_bytes: larger members drop out.

  Raises:
    FileNotFoundError: no tars.
    ValueError: captions of samples that have classes, or an empty classnames.txt.
  """

  root: str
  split: str = "test"
  label: str = "class"
  captions: int = 0
  index: str = ""
  max_bytes: int = untrusted.MAX_BYTES

  def __post_init__(self):
    if self.captions and self._names:
      raise ValueError(
        f"config.data.options.captions = {self.captions}, but the samples in "
        f"{self.root!r} have classes, as its classnames.txt says, and no captions"
      )
    _ = self._tars  # raises where there are none

  def __getstate__(self) -> dict[str, Any]:
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

  @functools.cached_property
  def _names(self) -> tuple[str, ...]:
    path = epath.Path(self.root) / "classnames.txt"
    return class_folders.read_names(str(path)) if path.exists() else ()

  @functools.cached_property
  def _tars(self) -> webdataset.Source:
    text = ("cls", "label") if self._names else ("txt", "captions")
    return webdataset.Source(
      paths=f"{self.root}/{self.split}/*.tar",
      members=(IMAGE, text),
      index=self.index,
      max_bytes=self.max_bytes,
    )

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns the label's name -> the names of the classes; {} for captions."""
    return {self.label: self._names} if self._names else {}

  def __len__(self) -> int:
    return len(self._tars) * max(self.captions, 1)

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(f"row {i} of {len(self)}")
    at, text = divmod(i, max(self.captions, 1))
    example = self._tars[at]
    if self._names:
      label = example.pop("label")
      if not 0 <= label < len(self._names):
        raise Drop("no such class")
      return example | {
        "captions": (self._names[label],),
        f"label_{self.label}": label,
      }
    texts = tuple(t for t in example["captions"].splitlines() if t.strip())
    if len(texts) < self.captions:
      raise Drop("too few captions")
    chosen = texts[text : text + 1] if self.captions else texts
    return example | {"captions": chosen, "id": at}
