"""A plain resize: the evaluation counterpart of random_resized_crop."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.interfaces import Example
from input_pipeline.transforms.random_resized_crop import FILTERS, model_size

# What is left out before the crop, of what is left out in all.
_HALF = {"torchvision": lambda n: round(n / 2), "transformers": lambda n: n // 2}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Resizes `image` uint8[h, w, 3] to (height, width), with antialiasing.

  Attributes:
    size: (height, width); taken from config.model.modalities.image.size.
    crop: share of the shorter side that is kept, as a square in the middle; 0 keeps all
      of the image and changes its aspect ratio.
    filter: "bilinear" | "bicubic".
    as_in: "torchvision" | "transformers": resizes first and crops then, pixel for pixel
      as these do on Pillow images (the latter rounds the corner down); slower for large
      images. "": crops first.
  """

  size: tuple[int, int]
  crop: float = 0.0
  filter: str = "bicubic"
  as_in: str = ""

  reads = ("image",)
  writes = ("image",)

  def __post_init__(self):
    for key, known in (("filter", tuple(FILTERS)), ("as_in", ("", *_HALF))):
      if getattr(self, key) not in known:
        raise ValueError(
          f"resize: {key} = {getattr(self, key)!r}, expected one of {known}"
        )

  @classmethod
  def defaults(cls, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the size of the model's images."""
    return model_size(config)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with `image` uint8[*size, 3]."""
    image = example["image"]
    height, width = image.shape[:2]
    if not self.crop and (height, width) == self.size:
      return example
    if self.as_in:
      return example | {"image": self._resized_first(Image.fromarray(image))}
    box = (0.0, 0.0, float(width), float(height))
    if self.crop:
      side = self.crop * min(height, width)
      x, y = (width - side) / 2, (height - side) / 2
      box = (x, y, x + side, y + side)
    resized = Image.fromarray(image).resize(
      self.size[::-1], FILTERS[self.filter], box=box, reducing_gap=2.0
    )
    return example | {"image": np.asarray(resized)}

  def _resized_first(self, image: Image.Image) -> np.ndarray:
    if not self.crop:
      return np.asarray(image.resize(self.size[::-1], FILTERS[self.filter]))
    short, least = round(min(self.size) / self.crop), min(image.size)
    width, height = (
      short if x == least else int(short * x / least) for x in image.size
    )
    resized = image.resize((width, height), FILTERS[self.filter])
    half = _HALF[self.as_in]
    x, y = half(width - self.size[1]), half(height - self.size[0])
    return np.asarray(resized.crop((x, y, x + self.size[1], y + self.size[0])))
