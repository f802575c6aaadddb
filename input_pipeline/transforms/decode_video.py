"""Clips of videos: of animated images, or of frames that somebody decoded before."""

from collections.abc import Callable, Mapping
import dataclasses
import io
import math
from typing import Any

import numpy as np
from PIL import Image

from input_pipeline import npy
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example

FORMATS = ("GIF", "WEBP", "PNG")  # PNG: animated, APNG
_Read = Callable[[list[int]], list[Image.Image]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `<modality>` f32[frames, h, w, 3] and `<modality>_mask` bool[frames].

  Reads `<source>`: bytes of a GIF, WebP or APNG, or of a .npy file, or an array; the
  latter two uint8[t, h, w, 3]. An animation's frames count as equally long, and show
  white where they are transparent. A video shorter than the clip is padded with zeros
  at the end. Pixels become (x / 255 - mean) / std.

  Drops "empty video", "not a video", "broken video", "truncated video" and "video too
  large".

  Attributes:
    frames: of a clip; taken from config.model.modalities.<modality>.size.
    size: (height, width); taken from there too.
    clip: "random": neighbours, `stride` apart, from a random start; "uniform": spread
      evenly over the whole video, whatever its length.
    stride: of "random", in frames of the video.
    scale: least and most area of the box that is cut out, the same in every frame, over
      that of the largest box of `size`'s shape. (1, 1) is that one, in the middle.
    flip: probability that all frames are mirrored.
    mean: RGB of pixels in 0..1, subtracted.
    std: what they are divided by then.
    modality: what it writes.
    source: what it reads.
    max_pixels: of all frames of an animation up to the last one of the clip, which have
      to be decoded. Arrays and .npy files have no such limit.
  """

  frames: int
  size: tuple[int, int]
  clip: str = "random"
  stride: int = 1
  scale: tuple[float, float] = (1.0, 1.0)
  flip: float = 0.0
  mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
  std: tuple[float, float, float] = (0.5, 0.5, 0.5)
  modality: str = "video"
  source: str = "video_bytes"
  max_pixels: int = 2**27

  def __post_init__(self):
    if self.clip not in ("random", "uniform"):
      raise ValueError(
        f"decode_video.clip = {self.clip!r}, expected 'random' or 'uniform'"
      )
    if self.frames < 1 or self.stride < 1 or len(self.size) != 2:
      raise ValueError(
        f"decode_video.frames = {self.frames}, .stride = {self.stride}, .size = "
        f"{self.size}: expected 1 or more, 1 or more, (height, width)"
      )
    if not 0 < self.scale[0] <= self.scale[1] <= 1:
      raise ValueError(
        f"decode_video.scale = {self.scale}, expected 0 < low <= high <= 1"
      )

  @classmethod
  def defaults(cls, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns frames and size of the modality."""
    modality = config.model.modalities.get(options.get("modality", "video"))
    if modality is None or len(modality.size) != 4:
      return {}
    frames, height, width, _ = modality.size
    return {"frames": frames, "size": (height, width)}

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the key of the video."""
    return (self.source,)

  @property
  def writes(self) -> tuple[str, ...]:
    """Returns the keys of the clip and of its mask."""
    return (self.modality, f"{self.modality}_mask")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with a clip; the video is left out."""
    start, area, x, y, flipped = rng.random(5)
    # What hostile bytes make Pillow raise has no end; see decode_image.
    try:
      count, (width, height), read = _open(example[self.source], self.max_pixels)
      if min(count, width, height) < 1:
        raise Drop("empty video")
      chosen = self._chosen(count, start)
      box = self._box(width, height, area, x, y)
      shape = self.size[::-1], Image.Resampling.BILINEAR, box, 2.0
      clip = np.stack([np.asarray(image.resize(*shape)) for image in read(chosen)])
    except Drop:
      raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
      raise Drop("video too large") from e
    except Exception as e:
      cut = "truncated" in str(e).lower() or isinstance(e, EOFError)
      raise Drop("truncated video" if cut else "broken video") from e
    if flipped < self.flip:
      clip = clip[:, :, ::-1]
    out = np.zeros((self.frames, *self.size, 3), np.float32)
    mean, std = (np.asarray(v, np.float32) for v in (self.mean, self.std))
    out[: len(clip)] = (clip.astype(np.float32) / np.float32(255) - mean) / std
    mask = np.arange(self.frames) < len(clip)
    example = {k: v for k, v in example.items() if k != self.source}
    return example | {self.modality: out, f"{self.modality}_mask": mask}

  def _chosen(self, count: int, draw: float) -> list[int]:
    """Returns the indices of at most `frames` of `count` frames, in order."""
    if self.clip == "uniform":
      n = min(self.frames, count)
      return [(2 * i + 1) * count // (2 * n) for i in range(n)]
    n = min(self.frames, -(-count // self.stride))
    start = int(draw * (count - (n - 1) * self.stride))
    return [start + i * self.stride for i in range(n)]

  def _box(self, width: int, height: int, area: float, x: float, y: float):
    """Returns (left, top, right, bottom), in pixels."""
    largest = min(width / self.size[1], height / self.size[0])
    low, high = self.scale
    if high == low == 1:
      x = y = 0.5
    side = largest * math.sqrt(low + (high - low) * area)
    w, h = side * self.size[1], side * self.size[0]
    left, top = x * (width - w), y * (height - h)
    return left, top, min(left + w, width), min(top + h, height)


def _open(value: Any, max_pixels: int) -> tuple[int, tuple[int, int], _Read]:
  """Returns the number of frames, their (width, height), and what reads some."""
  if isinstance(value, bytes | bytearray | memoryview):
    data = bytes(value)
    if not data:
      raise Drop("empty video")
    if not data.startswith(npy.MAGIC):
      return _animation(data, max_pixels)
    value = npy.array(data, "video")
  if not isinstance(value, np.ndarray) or value.dtype != np.uint8:
    raise Drop("not a video")
  if value.ndim != 4 or value.shape[-1] != 3:
    raise Drop("not a video")
  count, height, width, _ = value.shape
  return (
    count,
    (width, height),
    lambda chosen: [Image.fromarray(np.ascontiguousarray(value[i])) for i in chosen],
  )


def _animation(data: bytes, max_pixels: int) -> tuple[int, tuple[int, int], _Read]:
  try:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
  except (Image.DecompressionBombError, Image.DecompressionBombWarning):
    raise
  except Exception as e:
    raise Drop("not a video") from e

  # The picture for viewers that cannot play an APNG need not be one of its frames.
  first = int(getattr(image, "default_image", False))

  def read(chosen: list[int]) -> list[Image.Image]:
    found = []
    chosen = [first + i for i in chosen]
    if (chosen[-1] + 1) * image.width * image.height > max_pixels:
      raise Drop("video too large")
    for i in chosen:
      image.seek(i)
      canvas = Image.new("RGBA", image.size, "white")
      whole = Image.alpha_composite(canvas, image.convert("RGBA"))
      found.append(whole.convert("RGB"))
    return found

  return getattr(image, "n_frames", 1) - first, image.size, read
