"""A plain resize: the evaluation counterpart of random_resized_crop."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.interfaces import Example
from input_pipeline.transforms.random_resized_crop import FILTERS, model_size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Resizes `image` uint8[h, w, 3] to (height, width), with antialiasing.

  Attributes:
    size: (height, width); taken from config.model.modalities.image.size.
    crop: share of the shorter side that is kept, as a square in the middle; 0 keeps all
      of the image and changes its aspect ratio.
    filter: "bilinear" | "bicubic".
  """

  size: tuple[int, int]
  crop: float = 0.0
  filter: str = "bicubic"

  reads = ("image",)
  writes = ("image",)

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
    box = (0.0, 0.0, float(width), float(height))
    if self.crop:
      side = self.crop * min(height, width)
      x, y = (width - side) / 2, (height - side) / 2
      box = (x, y, x + side, y + side)
    resized = Image.fromarray(image).resize(
      self.size[::-1], FILTERS[self.filter], box=box, reducing_gap=2.0
    )
    return example | {"image": np.asarray(resized)}
