"""Encoded images to the pixels of one box: what the image transforms share.

  header -> size, orientation -> (the transform chooses a box) -> decode -> resample

The box comes before the decoding: a JPEG whose box has twice the pixels that are asked
for, or more, is then decoded at half its size or less. libjpeg-turbo writes sound JPEGs
straight into arrays; Pillow reads their headers, and all other images. Every unusable
image is a `Drop` with a reason of its own.
"""

from collections.abc import Callable, Sequence
import dataclasses
import io
from typing import Any

import cykooz_resizer as resizer
import numpy as np
from PIL import Image
import simplejpeg

from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels
Color = tuple[int, int, int]
WHITE = (255, 255, 255)
MAX_PIXELS = 2**26
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "PPM")
FILTERS = {
  "bilinear": resizer.ResizeAlg.convolution(resizer.FilterType.bilinear),
  "bicubic": resizer.ResizeAlg.convolution(resizer.FilterType.catmull_rom),
}
_SCALES = (8, 4, 2)  # at which libjpeg decodes fewer coefficients
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
# Which turns put the last stored column or row first.
_LEFT, _TOP = (2, 3, 6, 7), (3, 4, 7, 8)


@dataclasses.dataclass(frozen=True)
class Picture:
  """An image that is decoded, once, when it is known what of it is needed.

  Attributes:
    size: (width, height) as it stands upright.
  """

  size: tuple[int, int]
  _decode: Callable[[int], tuple[np.ndarray, tuple[float, float], int]]

  def pixels(self, scale: int = 1) -> np.ndarray:
    """Returns uint8[h, w, 3], upright, at 1 / `scale` of the size or larger.

    Raises:
      Drop: "truncated image" or "broken image".
    """
    return self._decode(scale)[0]

  def region(self, box: Box, size: tuple[int, int]) -> tuple[np.ndarray, Box]:
    """Returns uint8[h, w, 3], upright and perhaps smaller, and the box's place in it.

    Args:
      box: in pixels of `self.size`; it may lie outside.
      size: (height, width) that the box is to be resized to; at least so many pixels of
        it are decoded, if it has them.

    Raises:
      Drop: "truncated image" or "broken image".
    """
    height, width = size
    scale = int(min((box[2] - box[0]) / width, (box[3] - box[1]) / height))
    image, (left, top), done = self._decode(scale)
    if done == 1:
      return image, box
    x0, y0, x1, y1 = (edge / done for edge in box)
    return image, (x0 + left, y0 + top, x1 + left, y1 + top)


def taken(example: Example, **options: Any) -> tuple[Example, Picture]:
  """Returns the example without its `image_bytes`, and the picture of these or `image`.

  The options and what is raised are those of `picture`.
  """
  value = example.get("image_bytes", example.get("image"))
  rest = {k: v for k, v in example.items() if k != "image_bytes"}
  return rest, picture(value, **options)


def picture(
  value: Any,
  *,
  background: Color = WHITE,
  max_pixels: int = MAX_PIXELS,
  formats: Sequence[str] = FORMATS,
) -> Picture:
  """Returns the picture of encoded bytes, or of an array uint8[h, w] or [h, w, 1 to 4].

  Args:
    value: of an example.
    background: RGB under transparent pixels.
    max_pixels: larger images are refused before they are decoded.
    formats: Pillow's names of what is read.

  Raises:
    Drop: "not an image", "truncated image", "broken image", "empty image" or "image too
      large".
  """
  if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim:
    return _whole(np.array(_rgb(_from_array(value), background)))
  if not isinstance(value, bytes | bytearray | memoryview | np.bytes_):
    raise Drop("not an image")
  data = bytes(value)
  image = _opened(data, max_pixels, formats)
  if image.format != "JPEG":  # where EXIF may follow the pixels
    return _whole(_loaded(image, background))
  turn = _turn(image)
  width, height = image.size

  def decode(scale: int) -> tuple[np.ndarray, tuple[float, float], int]:
    done = next((s for s in _SCALES if s <= min(scale, width // 8, height // 8)), 1)
    pixels = _sound_jpeg(data, image, done)
    if pixels is None:  # Pillow forgives more, and knows why if it does not
      if done > 1:
        image.draft("RGB", (width // done, height // done))
      pixels = _loaded(image, background)
    elif turn != 1:
      pixels = np.array(Image.fromarray(pixels).transpose(_TURNS[turn]))
    # A side that is no multiple ends in part of a pixel, which the turn may put first.
    spare = (pixels.shape[1] - size[0] / done, pixels.shape[0] - size[1] / done)
    return pixels, (spare[0] * (turn in _LEFT), spare[1] * (turn in _TOP)), done

  size = (height, width) if turn in (5, 6, 7, 8) else (width, height)
  return Picture(size, decode)


def array(image: Image.Image) -> np.ndarray:
  """Returns uint8[h, w] or [h, w, 2 to 4] of an image of Pillow's, for `picture`.

  It stands as its EXIF says and has 8 bits a channel, as if it were read from bytes.

  Raises:
    Drop: "truncated image" or "broken image".
  """
  return _upright(image, _plain)


def resized(
  image: np.ndarray, size: tuple[int, int], box: Box, method: str
) -> np.ndarray:
  """Returns uint8[*size, 3]: a box of an image, resampled with antialiasing.

  Args:
    image: uint8[h, w, 3].
    size: (height, width).
    box: inside of the image.
    method: of FILTERS.
  """
  height, width = size
  rows, columns, _ = image.shape
  rgb = resizer.PixelType.U8x3
  source = resizer.ImageData(columns, rows, rgb, image.tobytes())
  target = resizer.ImageData(width, height, rgb)
  left, top = max(box[0], 0.0), max(box[1], 0.0)
  right, bottom = min(box[2], columns), min(box[3], rows)
  options = resizer.ResizeOptions(
    resize_alg=FILTERS[method],
    crop_box=resizer.CropBox(left, top, right - left, bottom - top),
  )
  resizer.Resizer().resize(source, target, options)
  return np.frombuffer(target.get_buffer(), np.uint8).reshape(height, width, 3)


def _whole(image: np.ndarray) -> Picture:
  return Picture((image.shape[1], image.shape[0]), lambda scale: (image, (0.0, 0.0), 1))


def _sound_jpeg(data: bytes, header: Image.Image, scale: int) -> np.ndarray | None:
  """Returns uint8[h, w, 3] at 1 / `scale`, as stored; None if it is not so simple."""
  if header.mode not in ("RGB", "L"):
    return None
  height, width = (-(-side // scale) for side in (header.height, header.width))
  try:  # strict: what libjpeg warns of is for Pillow
    pixels = simplejpeg.decode_jpeg(
      data, "RGB", min_height=height, min_width=width, min_factor=scale
    )
  except Exception:
    return None
  return pixels if pixels.shape == (height, width, 3) else None


def _opened(data: bytes, max_pixels: int, formats: Sequence[str]) -> Image.Image:
  """Returns an image of which the header is read, and nothing else."""
  # Pillow raises a dozen types on hostile bytes (struct.error, zlib.error, KeyError),
  # and none of them is a fault of this program: hence the wide net, here and below.
  try:
    image = Image.open(io.BytesIO(data), formats=tuple(formats))
  except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
    raise Drop("image too large") from e
  except Exception as e:
    raise Drop(_reason(e, "not an image") if data else "empty image") from e
  if min(image.size) < 1:
    raise Drop("empty image")
  if image.size[0] * image.size[1] > max_pixels:
    raise Drop("image too large")
  return image


def _loaded(image: Image.Image, background: Color) -> np.ndarray:
  """Returns uint8[h, w, 3], upright."""
  return _upright(image, lambda found: _rgb(found, background))


def _upright(
  image: Image.Image, convert: Callable[[Image.Image], Image.Image]
) -> np.ndarray:
  """Returns uint8[h, w, ...], upright, of what `convert` makes of 8 bits a channel."""
  try:
    image.load()
    turn = _TURNS.get(_turn(image))
    turned = image if turn is None else image.transpose(turn)
    return np.array(convert(_eight_bits(turned)))
  except Drop:
    raise
  except Exception as e:
    raise Drop(_reason(e, "broken image")) from e


def _reason(error: Exception, otherwise: str) -> str:
  truncated = "truncated" in str(error).lower() or isinstance(error, EOFError)
  return "truncated image" if truncated else otherwise


def _turn(image: Image.Image) -> int:
  """Returns the orientation of its EXIF, 1 where it says nothing that makes sense."""
  if "exif" not in image.info:  # TIFF keeps it elsewhere, and Pillow turns it itself
    return 1
  try:
    turn = image.getexif().get(_ORIENTATION, 1)
    return turn if turn in _TURNS else 1
  except Exception:  # hostile bytes, as above; the pixels are fine
    return 1


def _from_array(value: np.ndarray) -> Image.Image:
  if value.ndim == 3 and value.shape[-1] == 1:
    value = value[..., 0]
  if not (value.ndim == 2 or (value.ndim == 3 and value.shape[-1] in (2, 3, 4))):
    raise Drop("not an image")
  if not value.size:
    raise Drop("empty image")
  return Image.fromarray(np.ascontiguousarray(value))


def _eight_bits(image: Image.Image) -> Image.Image:
  if image.mode.startswith("I"):  # 16 bits a pixel; convert() would clip, not scale
    levels = np.asarray(image).astype(np.float64) / 257
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
  if image.mode == "F":
    raise Drop("broken image")  # floats of no known range
  return image


def _plain(image: Image.Image) -> Image.Image:
  """Returns the image in a mode that stands for itself as an array."""
  known = image.mode in ("L", "LA", "RGB", "RGBA") and "transparency" not in image.info
  return image if known else image.convert("RGBA")


def _rgb(image: Image.Image, background: Color) -> Image.Image:
  """Returns the image in RGB, composed over the background."""
  if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (*background, 255))
    return Image.alpha_composite(canvas, image).convert("RGB")
  return image if image.mode == "RGB" else image.convert("RGB")
