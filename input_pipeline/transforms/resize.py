"""A plain resize: the evaluation counterpart of random_resized_crop."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline import images
from input_pipeline.interfaces import Example
from input_pipeline.transforms.random_resized_crop import model_size

_PILLOW = {
  "bilinear": Image.Resampling.BILINEAR,
  "bicubic": Image.Resampling.BICUBIC,
}
# What is left out before the crop, of what is left out in all.
_HALF = {"torchvision": lambda n: round(n / 2), "transformers": lambda n: n // 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `image` uint8[*size, 3]: all of the image or its middle, antialiased.

  Reads what `random_resized_crop` does, and as fast.

  Attributes:
    size: (height, width); taken from config.model.modalities.image.size.
    crop: share of the shorter side that is kept, as a square in the middle; 0 keeps all
      of the image and changes its aspect ratio.
    filter: "bilinear" | "bicubic".
    as_in: "torchvision" | "transformers": resizes first and crops then, pixel for pixel
      as these do on Pillow images (the latter rounds the corner down); slower for large
      images. "": crops first.
    rest: pixels at the bottom and at the right that are made and then left out, as a
      convolution leaves out what its patches do not tile.
  """

  size: tuple[int, int]
  crop: float = 0.0
  filter: str = "bicubic"
  as_in: str = ""
  rest: int = 0

  reads = ("image_bytes|image",)
  writes = ("image",)

  def __post_init__(self):
    for key, known in (("filter", tuple(images.FILTERS)), ("as_in", ("", *_HALF))):
      if getattr(self, key) not in known:
        raise ValueError(
          f"resize: {key} = {getattr(self, key)!r}, expected one of {known}"
        )
    if self.rest < 0:
      raise ValueError(f"resize: rest = {self.rest}, expected at least 0")

  @classmethod
  def defaults(cls, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the size of the model's images."""
    return model_size(config)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with `image` uint8[*size, 3]; no bytes are left in it."""
    example, picture = images.taken(example)
    width, height = picture.size
    other = self.crop or (height, width) != self.size
    if self.rest or (self.as_in and other):
      whole = Image.fromarray(picture.pixels())
      return example | {"image": self._resized_first(whole)}
    box = (0.0, 0.0, float(width), float(height))
    if self.crop:
      side = self.crop * min(height, width)
      x, y = (width - side) / 2, (height - side) / 2
      box = (x, y, x + side, y + side)
    elif (height, width) == self.size:
      return example | {"image": picture.pixels()}
    image, box = picture.region(box, self.size)
    return example | {"image": images.resized(image, self.size, box, self.filter)}

  def _resized_first(self, image: Image.Image) -> np.ndarray:
    height, width = (n + self.rest for n in self.size)
    wide, high, x, y = width, height, 0, 0  # of the whole image, and the kept corner
    if self.crop:
      short, least = round(min(height, width) / self.crop), min(image.size)
      wide, high = (short if x == least else int(short * x / least) for x in image.size)
      half = _HALF.get(self.as_in, _HALF["torchvision"])
      x, y = half(wide - width), half(high - height)
    resized = image.resize((wide, high), _PILLOW[self.filter])
    return np.asarray(resized.crop((x, y, x + self.size[1], y + self.size[0])))
