"""Encoded images to RGB pixels, with every unusable one dropped for a stated reason."""

import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
_ORIENTATION = 0x0112  # the tag of EXIF
_TURNS = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `image` uint8[h, w, 3] from PNG, JPEG, WebP, ... bytes, or from an array.

  Reads `image_bytes`, or `image` where a source calls it so (bytes or uint8 [h, w],
  [h, w, 1 | 2 | 3 | 4]). Transparent pixels show the background, an animation its first
  frame, and a photo stands as its EXIF orientation says. Drops "not an image",
  "truncated image", "broken image", "empty image" and "image too large".

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

  background: tuple[int, int, int] = (255, 255, 255)
  size: tuple[int, ...] = ()
  min_side: int = 0
  max_pixels: int = 2**26
  formats: tuple[str, ...] = FORMATS
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
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim:
      image = _rgb(_from_array(value), self.background)
    elif isinstance(value, bytes | bytearray | memoryview | np.bytes_):
      image = self._open(bytes(value))
    else:
      raise Drop("not an image")
    if self.size and (image.height, image.width) != self.size:
      height, width = self.size
      image = image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return np.array(image)

  def _open(self, data: bytes) -> Image.Image:
    # Pillow raises a dozen types on hostile bytes (struct.error, zlib.error, KeyError),
    # and none of them is a fault of this program: hence the wide net, twice.
    try:
      image = Image.open(io.BytesIO(data), formats=self.formats)  # the header only
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
      raise Drop("image too large") from e
    except Exception as e:
      raise Drop(_reason(e, "not an image") if data else "empty image") from e
    if min(image.size) < 1:
      raise Drop("empty image")
    if image.size[0] * image.size[1] > self.max_pixels:
      raise Drop("image too large")
    try:
      if self.min_side and image.format == "JPEG":
        factor = min(image.size) // self.min_side
        if factor > 1:
          image.draft("RGB", (image.size[0] // factor, image.size[1] // factor))
      image.load()
      return _rgb(_upright(image), self.background)
    except Drop:
      raise
    except Exception as e:
      raise Drop(_reason(e, "broken image")) from e


def _reason(error: Exception, otherwise: str) -> str:
  truncated = "truncated" in str(error).lower() or isinstance(error, EOFError)
  return "truncated image" if truncated else otherwise


def _upright(image: Image.Image) -> Image.Image:
  """Returns the image turned as its EXIF says; EXIF without sense says nothing."""
  if "exif" not in image.info:  # TIFF keeps it elsewhere, and Pillow turns it itself
    return image
  try:
    turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
  except Exception:  # hostile bytes, as above; the pixels are fine
    return image
  return image if turn is None else image.transpose(turn)


def _from_array(value: np.ndarray) -> Image.Image:
  if value.ndim == 3 and value.shape[-1] == 1:
    value = value[..., 0]
  if not (value.ndim == 2 or (value.ndim == 3 and value.shape[-1] in (2, 3, 4))):
    raise Drop("not an image")
  if not value.size:
    raise Drop("empty image")
  return Image.fromarray(np.ascontiguousarray(value))


def _rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
  """Returns the image in RGB, composed over the background."""
  if image.mode.startswith("I"):  # 16 bits a pixel; convert() would clip, not scale
    levels = np.asarray(image).astype(np.float64) / 257
    image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
  elif image.mode == "F":
    raise Drop("broken image")  # floats of no known range
  if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, image).convert("RGB")
  return image if image.mode == "RGB" else image.convert("RGB")
