"""A random crop, resized to the model's size (arXiv 1409.4842, section 6)."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline import images
from input_pipeline.images import Box
from input_pipeline.interfaces import Example

_TURNED = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def model_size(config: Any) -> dict[str, Any]:
  """Returns the option `size`: height and width of config.model.modalities.image."""
  image = config.model.modalities.get("image")
  return {"size": tuple(image.size[:2])} if image else {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `image` uint8[*size, 3]: a random box, resized with antialiasing.

  Reads what `decode_image` does, and drops the same. A JPEG's box is drawn before it is
  decoded: at a half, a quarter or an eighth of its size where the box is larger than
  `size` by that factor.

  Differences from torchvision's: a side that would be longer than the image's is cut to
  it, there the box is drawn again; and its ratio is relative to the image's.

  Attributes:
    size: (height, width); taken from config.model.modalities.image.size.
    scale: least and most area of the box, over that of the image, before it is cut: of
      (0.9, 1.0), boxes have .82 and more. Above 1 zooms out: the image then lies
      somewhere on a larger canvas of the fill colour.
    ratio: least and most width / height of the box, over that of the image; the
      logarithm is uniform.
    rotate: at most so many degrees either way, before the crop.
    fill: RGB of what lies outside the image, and under transparent pixels.
    filter: "bilinear" | "bicubic".
  """

  size: tuple[int, int]
  scale: tuple[float, float] = (0.5, 1.0)
  ratio: tuple[float, float] = (3 / 4, 4 / 3)
  rotate: float = 0.0
  fill: images.Color = images.WHITE
  filter: str = "bilinear"

  reads = ("image_bytes|image",)
  writes = ("image",)

  @classmethod
  def defaults(cls, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the size of the model's images."""
    return model_size(config)

  def __post_init__(self):
    for name in ("scale", "ratio"):
      low, high = getattr(self, name)
      if not 0 < low <= high:
        raise ValueError(
          f"random_resized_crop: {name} = {(low, high)}; 0 < low <= high"
        )
    if self.filter not in images.FILTERS:
      raise ValueError(f"filter {self.filter!r} is none of {sorted(images.FILTERS)}")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with `image` uint8[*size, 3]; no bytes are left in it."""
    example, picture = images.taken(example, background=self.fill)
    angle, *draws = rng.random(5)
    pixels, box = picture.region(self._box(picture.size, draws), self.size)
    degrees = (2 * angle - 1) * self.rotate
    if self.rotate and not self._shrinks(box):
      turned = self._turned(Image.fromarray(pixels), box, math.radians(degrees))
      return example | {"image": np.asarray(turned)}
    if self.rotate:
      bilinear, image = Image.Resampling.BILINEAR, Image.fromarray(pixels)
      pixels = np.asarray(image.rotate(degrees, bilinear, fillcolor=self.fill))
    pixels, box = _padded(pixels, box, self.fill)
    return example | {"image": images.resized(pixels, self.size, box, self.filter)}

  def _box(self, size: tuple[int, int], draws: list[float]) -> Box:
    """Returns (left, top, right, bottom) of the crop, in pixels."""
    width, height = size
    area, ratio, x, y = draws
    low, high = self.scale
    area = low + (high - low) * area
    low, high = (math.log(r) for r in self.ratio)
    stretch = math.exp((low + (high - low) * ratio) / 2)
    w = width * math.sqrt(area) * stretch
    h = height * math.sqrt(area) / stretch
    if area <= 1:  # a crop never shows the canvas only because of its shape
      w, h = min(w, width), min(h, height)
    w, h = max(w, 1.0), max(h, 1.0)
    x, y = x * (width - w), y * (height - h)  # negative where the box is wider
    return x, y, x + w, y + h

  def _shrinks(self, box: Box) -> bool:
    """Returns whether the resize skips so many pixels that it must antialias."""
    height, width = self.size
    return box[2] - box[0] > 1.5 * width or box[3] - box[1] > 1.5 * height

  def _turned(self, image: Image.Image, box: Box, angle: float) -> Image.Image:
    """Returns turn, crop and resize in one resampling: sharper, and faster."""
    height, width = self.size
    cx, cy = image.width / 2, image.height / 2
    cos, sin = math.cos(angle), math.sin(angle)
    sx, sy = (box[2] - box[0]) / width, (box[3] - box[1]) / height
    x, y = box[0] - cx, box[1] - cy  # of the output's corner, around the centre
    matrix = (
      *(cos * sx, -sin * sy, cos * x - sin * y + cx),
      *(sin * sx, cos * sy, sin * x + cos * y + cy),
    )
    return image.transform(
      (width, height),
      Image.Transform.AFFINE,
      matrix,
      _TURNED[self.filter],
      fillcolor=self.fill,
    )


def _padded(
  image: np.ndarray, box: Box, fill: tuple[int, ...]
) -> tuple[np.ndarray, Box]:
  """Returns a canvas that holds the whole box, and the box's place on it."""
  height, width, _ = image.shape
  if min(box) >= 0 and box[2] <= width and box[3] <= height:
    return image, box
  left, top = math.ceil(max(-box[0], 0)), math.ceil(max(-box[1], 0))
  right = math.ceil(max(box[2] - width, 0))
  bottom = math.ceil(max(box[3] - height, 0))
  canvas = np.empty((top + height + bottom, left + width + right, 3), np.uint8)
  canvas[:] = np.asarray(fill, np.uint8)
  canvas[top : top + height, left : left + width] = image
  return canvas, (box[0] + left, box[1] + top, box[2] + left, box[3] + top)
