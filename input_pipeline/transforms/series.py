"""Many channels over time, of any length, to one length: sensors, motion, ECGs."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from input_pipeline import npy
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `<modality>` f32[length, channels] and `<modality>_mask` bool[length].

  Reads `<source>`: numbers [t, channels] or [t], as an array, as lists, or as the bytes
  of a .npy file. Shorter series are padded with zeros at the end.

  Drops "empty series", "not a series", "broken series", "truncated series", "other
  channels" and "series not finite".

  Attributes:
    length: of the result; taken from config.model.modalities.<modality>.size.
    channels: taken from there too.
    crop: what is kept of a longer series: "random" or its "first" part.
    mean: of each channel over the data set, subtracted; () subtracts nothing.
    std: of each channel, divides; () divides by nothing.
    standardise: whether each channel of each example then gets mean 0 and deviation 1
      over what is kept of it. One that is constant, up to rounding in f64, becomes 0.
    modality: what it writes.
    source: what it reads.
  """

  length: int
  channels: int
  crop: str = "random"
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()
  standardise: bool = True
  modality: str = "series"
  source: str = "values"

  def __post_init__(self):
    if self.crop not in ("random", "first"):
      raise ValueError(f"series.crop = {self.crop!r}, expected 'random' or 'first'")
    for key in ("mean", "std"):
      given = getattr(self, key)
      if given and len(given) != self.channels:
        raise ValueError(
          f"series.{key} has {len(given)} numbers, expected one for each of "
          f"{self.channels} channels"
        )
    if any(s <= 0 for s in self.std):
      raise ValueError(f"series.std = {self.std}, expected numbers above 0")

  @classmethod
  def defaults(cls, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns length and channels of the modality, whose size is (t, channels, 1)."""
    modality = config.model.modalities.get(options.get("modality", "series"))
    if modality is None or len(modality.size) != 3:
      return {}
    return dict(zip(("length", "channels"), modality.size))

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the key of the numbers."""
    return (self.source,)

  @property
  def writes(self) -> tuple[str, ...]:
    """Returns the keys of the series and of its mask."""
    return (self.modality, f"{self.modality}_mask")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with the series; what it was made of is left out."""
    draw = rng.random() if self.crop == "random" else 0.0
    x = self._numbers(example[self.source])
    spare = max(len(x) - self.length, 0)
    start = int(draw * (spare + 1))
    x = x[start : start + self.length].astype(np.float64)
    out = np.zeros((self.length, self.channels), np.float32)
    with np.errstate(all="ignore"):  # of numbers too large: they are looked for below
      if self.mean:
        x = x - np.asarray(self.mean)
      if self.std:
        x = x / np.asarray(self.std)
      out[: len(x)] = _standardised(x) if self.standardise else x
    if not np.isfinite(out).all():
      raise Drop("series not finite")
    mask = np.arange(self.length) < len(x)
    example = {k: v for k, v in example.items() if k != self.source}
    return example | {self.modality: out, f"{self.modality}_mask": mask}

  def _numbers(self, value: Any) -> np.ndarray:
    """Returns real numbers [t, channels]."""
    if isinstance(value, bytes | bytearray | memoryview):
      x = npy.array(bytes(value), "series")
    else:
      try:
        x = np.asarray(value)
      except ValueError as e:  # rows of different lengths
        raise Drop("not a series") from e
    if x.ndim == 1:
      x = x[:, None]
    if x.dtype.kind not in "biuf" or x.ndim != 2:
      raise Drop("not a series")
    if not len(x):
      raise Drop("empty series")
    if x.shape[1] != self.channels:
      raise Drop("other channels")
    return x


def _standardised(x: np.ndarray) -> np.ndarray:
  """Returns f64[t, channels] of mean 0 and deviation 1, or of zeros where constant."""
  # Below 1 by a power of two, which is exact, so that no square is beyond f64; and from
  # the first number on, so that a constant is exactly 0.
  x = np.ldexp(x, -np.frexp(np.abs(x).max(axis=0))[1])
  x = x - x[0]
  x = x - x.mean(axis=0)
  std = x.std(axis=0)
  flat = std <= np.finfo(np.float64).eps
  return np.where(flat, 0, x / np.where(flat, 1, std))
