"""Batches of like examples: short texts are not padded far, wide images not bent.

A source is split into parts by the length of its texts and the shape of its images, and
every batch is of one part: the parts are a mixture, each with a share of as many
batches as it has examples. So there are as many shapes as parts, and what holds of
mixtures holds here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import hashlib
import io
import itertools
import json
from typing import Any, NamedTuple

from etils import epath
import numpy as np
from PIL import Image

from input_pipeline import atomic, captions, cleaning, images, tokenizer
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example, Source, Transform
from input_pipeline.transforms import tokenize

_ORIENTATION = 0x0112  # of EXIF
_ON_ITS_SIDE = (5, 6, 7, 8)  # how a photo lies by it
_SAMPLE = 64  # examples that tell whether the data is still the same
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


class Reader(NamedTuple):
  """Where a run's texts come from, and how they become ids.

  Attributes:
    keys: of raw examples.
    lower: whether texts are in lower case before they are tokenized.
    tokenize: the transform.
  """

  keys: tuple[str, ...]
  lower: bool
  tokenize: tokenize.Transform

  def texts(self, example: Example) -> Iterator[str]:
    """Yields every text that may be an example's."""
    for key in self.keys:
      for text in captions.texts(example.get(key)):
        yield text.lower() if self.lower else text

  def counter(self) -> Callable[[str], int]:
    """Returns what counts the ids of a text and of its ends; 0 where it drops out."""
    t = self.tokenize
    model = tokenizer.load(t.tokenizer, t.vocab, t.modality)
    begin = model.begin if t.begin is None else t.begin
    end = model.end if t.end is None else t.end
    ends = len(begin) + (len(end) if t.eos else 0)

    def count(text: str) -> int:
      ids = model.encode(cleaning.CLEAN[t.clean](text))
      return len(ids) + ends if ids else 0

    return count

  def told(self) -> list[Any]:
    """Returns what the lengths depend on, for `stamp`."""
    t = self.tokenize
    model = tokenizer.fingerprint(t.tokenizer)
    return [self.keys, self.lower, model, t.begin, t.end, t.eos, t.clean]


def readers(transforms: Sequence[tuple[str, Transform]]) -> list[Reader]:
  """Returns how the modality "text" is read, going back from each tokenize to its keys.

  Raises:
    ValueError: the text is that of another example, whose length says nothing.
  """
  out = []
  for i, (_, last) in enumerate(transforms):
    if not isinstance(last, tokenize.Transform) or last.modality != "text":
      continue
    keys, lower = {last.key}, False
    for name, t in reversed(transforms[:i]):
      if not keys & set(t.writes):
        continue
      if "partner" in t.reads:
        raise ValueError(
          f"config.data.buckets does not go with {name}, which gives an example the "
          "text of another one: leave one of the two out"
        )
      lower |= bool(getattr(t, "lowercase", False))
      keys = keys - set(t.writes) | {k for key in t.reads for k in key.split("|")}
    out.append(Reader(tuple(sorted(keys)), lower, last))
  return out


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


def measure(source: Source, reads: Sequence[Reader] = ()) -> dict[str, np.ndarray]:
  """Returns what `parts` goes by; reads every example, but decodes hardly an image.

  Args:
    source: all of its examples are read.
    reads: of `readers`; without any, texts are not measured.

  Returns:
    text: int32[n], ids of the longest text and of its ends; 0 without any.
    image: int32[n, 2], height and width as the photo stands; 0 where unreadable.

  Raises:
    ValueError: there are readers, but no example has a text for them.
  """
  text = np.zeros(len(source), np.int32)
  image = np.zeros((len(source), 2), np.int32)
  counters = [(reader, reader.counter()) for reader in reads]
  for i in range(len(source)):
    try:
      example = source[i]
    except Drop:  # it drops out again when its turn comes
      continue
    counts = (count(t) for reader, count in counters for t in reader.texts(example))
    text[i] = max(counts, default=0)
    image[i] = _shape(example.get("image_bytes", example.get("image")))
  if reads and not text.any():
    keys = sorted({key for reader in reads for key in reader.keys})
    raise ValueError(
      f"config.data.buckets: none of {len(source)} examples has a text under {keys}, "
      "which tokenize reads by config.data.transforms: there is no length to go by"
    )
  return {"text": text, "image": image}


def _shape(value: Any) -> Size:
  if isinstance(value, np.ndarray) and value.ndim > 1:
    return value.shape[0], value.shape[1]
  # As in input_pipeline.images: hostile bytes raise a dozen types.
  try:
    data = bytes(value)
    with Image.open(io.BytesIO(data), formats=images.FORMATS) as image:
      if image.format == "PNG" and "exif" not in image.info and b"eXIf" in data:
        image.load()  # it follows the pixels
      return image.size if _on_its_side(image) else image.size[::-1]
  except Exception:
    return 0, 0


def _on_its_side(image: Image.Image) -> bool:
  """Returns whether its EXIF has it turned; Pillow has turned the size of TIFF's."""
  if "exif" not in image.info:
    return False
  try:
    return image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
  except Exception:  # the pixels are fine, and stand as they are stored
    return False


def stamp(source: Source, reads: Sequence[Reader], told: Mapping[str, Any]) -> str:
  """Returns a digest of what measures depend on, by which old ones are known.

  Args:
    source: a few of its examples, evenly spaced, stand for all of them.
    reads: of `readers`.
    told: what the config says of the source.
  """
  seen: list[Any] = [len(source)]
  for i in sorted({k * len(source) // _SAMPLE for k in range(_SAMPLE)}):
    try:
      example = source[i]
    except Drop as e:
      seen.append(e.reason)
      continue
    shape = _shape(example.get("image_bytes", example.get("image")))
    seen.append([*map(int, shape), *(list(r.texts(example)) for r in reads)])
  whole = [dict(told), [r.told() for r in reads], seen]
  text = json.dumps(whole, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def save(path: str, measured: Mapping[str, np.ndarray], made_by: str) -> None:
  """Writes measures at once; `made_by` is of `stamp`."""
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
