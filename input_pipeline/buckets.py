"""Batches of texts of like length: short texts are not padded to the longest.

A source is split into parts by the length of its texts, and every batch is of one part:
the parts are a mixture, each with a share of as many batches as it has examples. So
there are as many shapes as lengths, and what holds of mixtures holds here.
"""

from collections.abc import Sequence
import io
from typing import NamedTuple

from etils import epath
import numpy as np

from input_pipeline import atomic, captions
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Source
from input_pipeline.tokenizer import Tokenizer

_KEY = "config.data.buckets"


class Part(NamedTuple):
  """A part of a source: `length` of its texts, and int64[n] indices of its examples."""

  length: int
  rows: np.ndarray


def lengths(buckets: Sequence[int], longest: int) -> tuple[int, ...]:
  """Returns the lengths of batches, config.data.buckets and the longest.

  Raises:
    ValueError: not rising, or not below the longest.
  """
  every = (*buckets, longest)
  if list(every) != sorted(set(every)) or every[0] < 2:
    raise ValueError(
      f"{_KEY} = {tuple(buckets)} must be rising lengths from 2, below "
      f"config.model.modalities.text.length = {longest}"
    )
  return every


def parts(measured: np.ndarray, every: Sequence[int]) -> list[Part]:
  """Returns the parts that have examples; a text longer than all is with the longest.

  Args:
    measured: int[n], ids of each example's text, ends included.
    every: of `lengths`.
  """
  bucket = np.minimum(np.searchsorted(every, measured), len(every) - 1)
  found = [Part(length, np.flatnonzero(bucket == i)) for i, length in enumerate(every)]
  return [part for part in found if len(part.rows)]


def measure(source: Source, tokenizer: Tokenizer) -> np.ndarray:
  """Returns int32[n]: ids of each example's longest caption, and one for its end.

  An example that cannot be read has 0: it drops out when its turn comes.
  """
  measured = np.zeros(len(source), np.int32)
  for i in range(len(source)):
    try:
      texts = list(captions.wordings(source[i]))
    except Drop:
      continue
    measured[i] = max((len(tokenizer.encode(text)) + 1 for text in texts), default=0)
  return measured


def save(path: str, measured: np.ndarray, made_by: str) -> None:
  """Writes lengths at once; `made_by` says of which tokenizer and examples."""
  file = io.BytesIO()
  np.savez_compressed(file, lengths=measured, made_by=np.array(made_by))
  atomic.write(path, file.getvalue())


def read(path: str, made_by: str) -> np.ndarray | None:
  """Returns the lengths in a file; None if there is none, or it was made otherwise."""
  if not epath.Path(path).exists():
    return None
  with epath.Path(path).open("rb") as file, np.load(file) as arrays:
    return arrays["lengths"] if str(arrays["made_by"]) == made_by else None
