"""Data sets of small grey pictures in named classes, which fit in memory."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, ClassVar, NamedTuple

import numpy as np

from input_pipeline import recipe
from input_pipeline.interfaces import Example

DIGITS = (
  *("zero", "one", "two", "three", "four"),
  *("five", "six", "seven", "eight", "nine"),
)


class Pictures(NamedTuple):
  """Some pictures, u8[n, h, w], and their classes, integers [n]."""

  images: np.ndarray
  labels: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Installed(recipe.Installed):
  """Examples: image uint8[h, w], captions {"en": name of its class}, label_class.

  A subclass sets `about` and `names`, and defines `parts`.
  """

  names: ClassVar[tuple[str, ...]] = DIGITS

  def parts(self) -> Mapping[str, Pictures]:
    """Returns the splits that the set itself gives, or all of it under ""."""
    raise NotImplementedError

  @functools.cached_property
  def _pictures(self) -> Mapping[str, Pictures]:
    return self.parts()

  def entries(self) -> Sequence[recipe.Entry]:
    """Returns (part, row); identical pictures are a family."""
    return [
      recipe.Entry((part, i), recipe.fingerprint(image.tobytes()), part)
      for part, (images, _) in self._pictures.items()
      for i, image in enumerate(images)
    ]

  def example(self, value: Any) -> Example:
    """Returns the picture in a row of a part."""
    part, i = value
    pictures = self._pictures[part]
    label = int(pictures.labels[i])
    return {
      "image": pictures.images[i],
      "captions": {"en": (self.names[label],)},
      "label_class": label,
    }

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns the names of the classes."""
    return {"class": self.names}
