"""Fashion-MNIST: 70,000 grey pictures of clothes in ten classes."""

from collections.abc import Mapping
import dataclasses

import numpy as np

from input_pipeline import small_pictures
from input_pipeline.recipe import Recipe

RECIPE = Recipe(
  title="Fashion-MNIST",
  client="apt",
  package="dataset-fashion-mnist=0.0~git20200523.55506a9-1",
  folder="usr/share/datasets/fashion-mnist",
  licence="MIT",
  attribution="Fashion-MNIST (c) 2017 Zalando SE",
  keys="image (28x28, grey), English name of its class",
  rule="the set's own, 60,000 and 10,000",
)
NAMES = (
  *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
  *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_STEMS = {"train": "train", "test": "t10k"}
_IMAGES, _LABELS = 2051, 2049  # magic numbers; the last byte counts dimensions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(small_pictures.Installed):
  """The pictures, uint8[28, 28], of the original split."""

  about = RECIPE
  names = NAMES

  def parts(self) -> Mapping[str, small_pictures.Pictures]:
    """Returns the set's own train and test."""
    return {part: self._part(stem) for part, stem in _STEMS.items()}

  def _part(self, stem: str) -> small_pictures.Pictures:
    return small_pictures.Pictures(
      self._array(f"{stem}-images-idx3-ubyte.gz", _IMAGES),
      self._array(f"{stem}-labels-idx1-ubyte.gz", _LABELS),
    )

  def _array(self, name: str, magic: int) -> np.ndarray:
    """Returns the array of an IDX file: its magic number, its shape, its bytes."""
    data = self.table(name)
    start = 4 * (1 + magic % 256)
    header = np.frombuffer(data[:start], ">u4") if len(data) >= start else [0]
    shape = [int(n) for n in header[1:]]
    if header[0] != magic or len(data) != start + np.prod(shape, dtype=int):
      raise ValueError(f"{self.folder / name} is not a whole IDX file of {magic}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
