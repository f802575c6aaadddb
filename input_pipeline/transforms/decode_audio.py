"""Encoded sound to a mono waveform of one rate and length, and what of it is real."""

from collections.abc import Mapping
import dataclasses
import functools
import io
import math
from typing import Any

import numpy as np
import soundfile

from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example
from model.mel import LogMel
from model.shapes import example_spec

# libsndfile guesses among two dozen formats; these are let through to it.
MAGIC = {"ogg": b"OggS", "wav": b"RIFF", "flac": b"fLaC"}
RATES = (1_000, 192_000)
_MOST_CHANNELS = 8
_OPEN_ENDED = 0x7FFFF000  # and above: what writers say who cannot know the length
_MOST_CHUNKS = 1000  # of a WAV before its samples
_LOUDEST = 100.0  # full scale is 1; floats that far beyond it are no sound


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `<key>` f32[seconds * rate] and `<key>_mask` bool of the same length.

  Only what is kept is decoded, wherever it lies in the file: memory is bounded by
  `seconds`, not by what a header claims. Shorter sounds are padded with zeros at the
  end. Channels are averaged; other rates are resampled by a polyphase filter. Also
  writes `<key>_rate`, which log_mel compares with its own.

  Drops "empty audio", "not audio", "broken audio", "truncated audio", "odd sample
  rate" and "too many channels". Truncated is a WAV that ends before its samples do, an
  Ogg whose last page is not whole, a FLAC whose last sample cannot be decoded or that
  says nothing of its length: wherever the crop lies.

  Attributes:
    rate: samples per second of the result; taken from the modality `key` where the
      device makes its spectrogram.
    seconds: length of the result; taken from there too.
    crop: what is kept of a longer sound: "random" or its "first" seconds.
    source: what it reads: bytes of an ogg, wav or flac file.
    key: what it writes. A modality whose spectrogram the device makes, or "waveform",
      which log_mel reads.
    formats: that are read; whatever else is "not audio".
  """

  rate: int
  seconds: float
  crop: str = "random"
  source: str = "audio_bytes"
  key: str = "waveform"
  formats: tuple[str, ...] = ("ogg", "wav", "flac")

  def __post_init__(self):
    if self.crop not in ("random", "first"):
      raise ValueError(
        f"decode_audio.crop = {self.crop!r}, expected 'random' or 'first'"
      )
    if not RATES[0] <= self.rate <= RATES[1]:
      raise ValueError(
        f"decode_audio.rate = {self.rate}, expected {RATES[0]} to {RATES[1]} per second"
      )
    if self.samples < 1:
      raise ValueError(f"decode_audio.seconds = {self.seconds} hold no sample")
    if unknown := sorted(set(self.formats) - set(MAGIC)):
      raise ValueError(f"decode_audio.formats: {unknown} are none of {sorted(MAGIC)}")

  @classmethod
  def defaults(cls, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns rate and seconds of a modality that the device makes a spectrogram of.

    Raises:
      ValueError: other ones in the options.
    """
    key = options.get("key", "waveform")
    modality = config.model.modalities.get(key)
    if modality is None or not modality.get("log_mel"):
      return {}
    (samples,), _ = example_spec(modality)
    rate = modality.log_mel.get("rate", LogMel.rate)
    own = {"rate": rate, "seconds": samples / rate}
    for name, value in own.items():
      if options.get(name, value) != value:
        raise ValueError(
          f"decode_audio.{name} = {options[name]}, but config.model.modalities.{key} "
          f"reads {samples} samples at log_mel.rate = {rate}: {name} = {value}"
        )
    return own

  @property
  def samples(self) -> int:
    """Returns the length of the result."""
    return round(self.seconds * self.rate)

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the key of the bytes."""
    return (self.source,)

  @property
  def writes(self) -> tuple[str, ...]:
    """Returns the keys of the waveform, of its mask and of its rate."""
    return (self.key, f"{self.key}_mask", f"{self.key}_rate")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with the waveform; the bytes are left out."""
    data = example[self.source]
    if not isinstance(data, bytes | bytearray | memoryview):
      raise Drop("not audio")
    draw = float(rng.random()) if self.crop == "random" else 0.0
    heard, rate = self._decode(bytes(data), draw)
    if rate != self.rate:
      heard = _resampled(heard, rate, self.rate)
    heard = heard[: self.samples]
    out = np.zeros(self.samples, np.float32)
    out[: len(heard)] = heard
    mask = np.arange(self.samples) < len(heard)
    example = {k: v for k, v in example.items() if k != self.source}
    made = (out, mask, self.rate)
    return example | dict(zip(self.writes, made, strict=True))

  def _decode(self, data: bytes, draw: float) -> tuple[np.ndarray, int]:
    """Returns f32[n] of the crop at the file's own rate, and that rate."""
    if not data:
      raise Drop("empty audio")
    if not any(data.startswith(MAGIC[name]) for name in self.formats):
      raise Drop("not audio")
    if _ends_early(data):
      raise Drop("truncated audio")
    # RuntimeError is what soundfile raises on hostile bytes; the others, on what their
    # headers claim (a length that overflows, a seek beyond the end).
    try:
      with soundfile.SoundFile(io.BytesIO(data)) as file:
        self._check(file)
        if data.startswith(MAGIC["flac"]) and not _has_last_sample(file):
          raise Drop("truncated audio")
        wanted = math.ceil(self.seconds * file.samplerate)
        spare = max(file.frames - wanted, 0)
        start = min(int(draw * (spare + 1)), spare)
        if start:
          file.seek(start)
        heard = file.read(wanted, dtype="float32", always_2d=True)
        promised, rate = min(file.frames - start, wanted), file.samplerate
    except Drop:
      raise
    except Exception as e:
      raise Drop("broken audio") from e
    if len(heard) < promised:
      raise Drop("truncated audio")
    if not np.abs(heard).max() <= _LOUDEST:  # NaN is not either
      raise Drop("broken audio")
    return heard.mean(axis=1), rate

  def _check(self, file: soundfile.SoundFile) -> None:
    if file.frames < 1:
      raise Drop("empty audio")
    if file.channels > _MOST_CHANNELS:
      raise Drop("too many channels")
    if not RATES[0] <= file.samplerate <= RATES[1]:
      raise Drop("odd sample rate")


def _ends_early(data: bytes) -> bool:
  """Returns whether a WAV or an Ogg lacks bytes of which it says that they are there.

  libsndfile takes such a file for a shorter one.
  """
  if data.startswith(MAGIC["ogg"]):
    # The last page is whole? It ought to be marked as the last, too, but a third of
    # KLettres' sound files are not.
    at = data.rfind(MAGIC["ogg"])
    if at + 27 > len(data):
      return True
    end = at + 27 + data[at + 26]
    return end + sum(data[at + 27 : end]) > len(data)
  if data.startswith(MAGIC["wav"]):
    at = 12
    for _ in range(_MOST_CHUNKS):
      size = int.from_bytes(data[at + 4 : at + 8], "little")
      if data[at : at + 4] == b"data":
        return size < _OPEN_ENDED and at + 8 + size > len(data)
      at += 8 + size + size % 2
  return False  # or libsndfile knows it


def _has_last_sample(file: soundfile.SoundFile) -> bool:
  """Returns whether the last sample can be decoded; the file is at its first then."""
  try:
    file.seek(file.frames - 1)
    found = len(file.read(1)) == 1
    file.seek(0)
    return found
  except RuntimeError:
    return False


def _resampled(x: np.ndarray, old: int, new: int) -> np.ndarray:
  """Returns f32[n] at another rate, by a polyphase filter."""
  from scipy import signal  # takes a second to import, which not every run needs

  shared = math.gcd(old, new)
  up, down = new // shared, old // shared
  return signal.resample_poly(x, up, down, window=_low_pass(max(up, down)))


@functools.lru_cache(maxsize=8)  # of thousands of taps: to make one takes milliseconds
def _low_pass(factor: int) -> np.ndarray:
  """Returns f32[taps] that pass 1 / factor of the band: what SciPy makes by default."""
  from scipy import signal

  taps = signal.firwin(20 * factor + 1, 1 / factor, window=("kaiser", 5.0))
  return taps.astype(np.float32)
