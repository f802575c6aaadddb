"""Batches of like examples: short texts are not padded far, wide images not bent.

A source is split into parts by the length of its texts and the shape of its images, and
every batch is of one part: the parts are a mixture, each with a share of as many
batches as it has examples. So there are as many shapes as parts, and what holds of
mixtures holds here.
"""

from collections.abc import Mapping, Sequence
import io
import itertools
from typing import Any, NamedTuple

from etils import epath
import numpy as np
from PIL import Image

from input_pipeline import atomic, captions
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Source
from input_pipeline.tokenizer import Tokenizer
from input_pipeline.transforms import decode_image

_FORMATS = decode_image.Transform().formats
_ORIENTATION = 0x0112  # of EXIF; from 5 on a photo lies on its side
Size = tuple[int, ...]  # (height, width)


class Part(NamedTuple):
  """A part of a source.

  Attributes:
    name: of the part.
    rows: int64[n], indices of its examples.
    length: of its texts; 0: any.
    size: (height, width) of its images; (): any.
  """

  name: str
  rows: np.ndarray
  length: int
  size: Size


def lengths(buckets: Sequence[int], longest: int) -> tuple[int, ...]:
  """Returns the lengths of batches, config.data.buckets and the longest; () for none.

  Raises:
    ValueError: not rising, or not below the longest.
  """
  every = (*buckets, longest)
  if list(every) != sorted(set(every)) or every[0] < 2:
    raise ValueError(
      f"config.data.buckets = {tuple(buckets)} must be rising lengths from 2, below "
      f"config.model.modalities.text.length = {longest}"
    )
  return every if buckets else ()


def sizes(shapes: Sequence[Size], own: Size) -> tuple[Size, ...]:
  """Returns the sizes of batches, the model's own and config.data.image_sizes.

  Raises:
    ValueError: something that is no (height, width), or one that is there already.
  """
  every = (tuple(own), *(tuple(shape) for shape in shapes))
  numbers = all(len(s) == 2 and min(s) > 0 for s in every)
  if not numbers or len(set(every)) < len(every):
    raise ValueError(
      f"config.data.image_sizes = {tuple(shapes)} must be different (height, width), "
      f"other than config.model.modalities.image.size = {tuple(own)}"
    )
  return every if shapes else ()


def parts(
  measured: Mapping[str, np.ndarray], texts: Sequence[int], images: Sequence[Size]
) -> list[Part]:
  """Returns the parts that have examples.

  A text longer than all lengths is with the longest; an image is with the size whose
  aspect ratio is nearest. What could not be measured is in the largest part: it drops
  out there, and a part of nothing else would have nothing to take in its place.

  Args:
    measured: of `measure`.
    texts: of `lengths`.
    images: of `sizes`.
  """
  whole = list(itertools.product(images or [()], texts or [0]))
  part = np.zeros(len(measured["text"]), np.int64)
  known = np.ones(len(part), bool)
  if images:
    nearest = np.abs(_log_ratio(measured["image"])[:, None] - _log_ratio(images))
    part += np.argmin(nearest, axis=1) * len(texts or [0])
    known &= _known(measured["image"].min(axis=1))
  if texts:
    part += np.minimum(np.searchsorted(texts, measured["text"]), len(texts) - 1)
    known &= _known(measured["text"])
  if known.any():
    part[~known] = np.bincount(part[known]).argmax()
  return [
    Part(_name(*of), np.flatnonzero(part == i), of[1], of[0])
    for i, of in enumerate(whole)
    if (part == i).any()
  ]


def _known(measured: np.ndarray) -> np.ndarray:
  """Returns bool[n]; where nothing is, the source has no such modality."""
  return (measured > 0) | ~(measured > 0).any()


def _name(size: Size, length: int) -> str:
  named = [f"image{size[0]}x{size[1]}"] if size else []
  return "-".join(named + ([f"text{length}"] if length else []))


def _log_ratio(shapes: Any) -> np.ndarray:
  """Returns f64[n], log(height / width) of n shapes."""
  height, width = np.log(np.maximum(shapes, 1)).T
  return height - width


def measure(source: Source, tokenizer: Tokenizer | None) -> dict[str, np.ndarray]:
  """Returns what `parts` goes by; reads every example, but decodes no image.

  Args:
    source: all of its examples are read.
    tokenizer: of its texts; None: they are not measured.

  Returns:
    text: int32[n], ids of the longest caption, and one for its end; 0 without any.
    image: int32[n, 2], height and width as the photo stands; 0 where unreadable.
  """
  text = np.zeros(len(source), np.int32)
  image = np.zeros((len(source), 2), np.int32)
  for i in range(len(source)):
    try:
      example = source[i]
    except Drop:  # it drops out again when its turn comes
      continue
    if tokenizer is not None:
      ids = (len(tokenizer.encode(t)) for t in captions.wordings(example))
      text[i] = max((n + 1 for n in ids), default=0)
    image[i] = _shape(example.get("image_bytes", example.get("image")))
  return {"text": text, "image": image}


def _shape(value: Any) -> Size:
  if isinstance(value, np.ndarray) and value.ndim > 1:
    return value.shape[0], value.shape[1]
  # As in the transform decode_image: hostile bytes raise a dozen types.
  try:
    with Image.open(io.BytesIO(bytes(value)), formats=_FORMATS) as image:
      turned = image.getexif().get(_ORIENTATION, 1) >= 5
      return image.size if turned else image.size[::-1]
  except Exception:
    return 0, 0


def save(path: str, measured: Mapping[str, np.ndarray], made_by: str) -> None:
  """Writes measures at once; `made_by` says of which tokenizer and examples."""
  file = io.BytesIO()
  np.savez_compressed(
    file, made_by=np.array(made_by), text=measured["text"], image=measured["image"]
  )
  atomic.write(path, file.getvalue())


def read(path: str, made_by: str) -> dict[str, np.ndarray] | None:
  """Returns the measures in a file; None if there is none, or it was made otherwise."""
  if not epath.Path(path).exists():
    return None
  with epath.Path(path).open("rb") as file, np.load(file) as arrays:
    if str(arrays["made_by"]) != made_by:
      return None
    return {key: arrays[key] for key in ("text", "image")}
