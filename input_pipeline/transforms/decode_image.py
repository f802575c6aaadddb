"""Encoded images to RGB pixels, with every unusable one dropped for a stated reason."""

import dataclasses
from typing import Any

import numpy as np

from input_pipeline import images
from input_pipeline.interfaces import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `image` uint8[h, w, 3] from PNG, JPEG, WebP, ... bytes, or from an array.

  Reads `image_bytes`, or `image` where a source calls it so (bytes or uint8 [h, w],
  [h, w, 1 | 2 | 3 | 4]). Transparent pixels show the background, an animation its first
  frame, and a photo stands as its EXIF orientation says. Drops "not an image",
  "truncated image", "broken image", "empty image" and "image too large".

  Not needed where bytes are only cropped or resized: `random_resized_crop` and `resize`
  decode them, and faster.

  Attributes:
    background: RGB under transparent pixels.
    size: (height, width) to resize to, or () to keep the image's own.
    min_side: a JPEG may be decoded at 1/2, 1/4 or 1/8 size, with its shorter side at
      least this many pixels: much faster. 0 is off.
    max_pixels: larger images are refused before they are decoded.
    formats: Pillow's names of what is read; whatever else is "not an image". EPS is
      a program, and Pillow would have Ghostscript run it.
    cache: keeps up to so many decoded images in memory, for small sets seen many times.
  """

  background: images.Color = images.WHITE
  size: tuple[int, ...] = ()
  min_side: int = 0
  max_pixels: int = images.MAX_PIXELS
  formats: tuple[str, ...] = images.FORMATS
  cache: int = 0
  _cached: dict = dataclasses.field(
    init=False, repr=False, compare=False, default_factory=dict
  )

  reads = ("image_bytes|image",)
  writes = ("image",)

  def __getstate__(self) -> dict[str, Any]:
    return self.__dict__ | {"_cached": {}}

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with `image` decoded; no bytes are left in it."""
    value = example.get("image_bytes", example.get("image"))
    image = self._cached.get(value) if self.cache and isinstance(value, bytes) else None
    if image is None:
      image = self._decode(value)
      if self.cache > len(self._cached) and isinstance(value, bytes):
        image.setflags(write=False)  # shared between examples
        self._cached[value] = image
    example = {k: v for k, v in example.items() if k != "image_bytes"}
    return example | {"image": image}

  def _decode(self, value: Any) -> np.ndarray:
    picture = images.picture(
      value,
      background=self.background,
      max_pixels=self.max_pixels,
      formats=self.formats,
    )
    scale = min(picture.size) // self.min_side if self.min_side else 1
    image = picture.pixels(scale)
    if not self.size or image.shape[:2] == self.size:
      return image
    height, width = self.size
    box = (0.0, 0.0, float(image.shape[1]), float(image.shape[0]))
    return images.resized(image, (height, width), box, "bicubic")
