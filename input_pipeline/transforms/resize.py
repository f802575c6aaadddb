"""A plain resize: the evaluation counterpart of random_resized_crop."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from input_pipeline import images
from input_pipeline.interfaces import Example
from input_pipeline.transforms.random_resized_crop import model_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `image` uint8[*size, 3]: all of the image or its middle, antialiased.

  Reads what `random_resized_crop` does, and as fast.

  Attributes:
    size: (height, width); taken from config.model.modalities.image.size.
    crop: share of the shorter side that is kept, as a square in the middle; 0 keeps all
      of the image and changes its aspect ratio.
    filter: "bilinear" | "bicubic".
  """

  size: tuple[int, int]
  crop: float = 0.0
  filter: str = "bicubic"

  reads = ("image_bytes|image",)
  writes = ("image",)

  @classmethod
  def defaults(cls, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the size of the model's images."""
    return model_size(config)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with `image` uint8[*size, 3]; no bytes are left in it."""
    example, picture = images.taken(example)
    width, height = picture.size
    box = (0.0, 0.0, float(width), float(height))
    if self.crop:
      side = self.crop * min(height, width)
      x, y = (width - side) / 2, (height - side) / 2
      box = (x, y, x + side, y + side)
    elif (height, width) == self.size:
      return example | {"image": picture.pixels()}
    image, box = picture.region(box, self.size)
    return example | {"image": images.resized(image, self.size, box, self.filter)}
