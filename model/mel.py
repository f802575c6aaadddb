"""What a log-mel spectrogram is: one definition, for the host and for the device.

Frame i is centred on sample i * hop, with zeros beyond both ends: a Hann window, the
power of its DFT in units of a full-scale tone, triangles over mel frequencies, the
natural logarithm above a floor, and a fixed standardisation. With scale = "slaney" this
is librosa's melspectrogram(center=True, pad_mode="constant"), divided by the square of
the window's sum; "htk" has triangles of height 1 over HTK's mels, as torchaudio's.
"""

import dataclasses
import functools

import numpy as np

from model import catalogue

SCALES = ("slaney", "htk")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogMel:
  """Options of a log-mel spectrogram.

  Attributes:
    rate: samples per second.
    n_fft: samples of the window and of the DFT.
    hop: samples from one frame to the next.
    mels: bands.
    fmin: lowest frequency, Hz.
    fmax: highest frequency, Hz; 0 is rate / 2.
    scale: "slaney" (linear to 1 kHz, then logarithmic; triangles of area 1 Hz) | "htk"
      (2595 log10(1 + f / 700); triangles of height 1).
    floor: least value of a band, before the logarithm. Far below 1e-10, or 1e-7 where
      scale = "htk", f32 cannot tell what is beside a loud tone.
    mean: subtracted from the logarithm.
    std: what it is divided by then.

  Raises:
    ValueError: an option out of its range, or a band without a frequency of the DFT.
  """

  rate: int = 16_000
  n_fft: int = 400
  hop: int = 160
  mels: int = 64
  fmin: float = 0.0
  fmax: float = 0.0
  scale: str = "slaney"
  floor: float = 1e-10
  mean: float = 0.0
  std: float = 1.0

  def __post_init__(self):
    for key, least in (("rate", 1), ("n_fft", 2), ("hop", 1), ("mels", 1)):
      if getattr(self, key) < least:
        raise ValueError(
          f"log_mel.{key} = {getattr(self, key)}, expected {least} or more"
        )
    if self.scale not in SCALES:
      raise ValueError(
        f"log_mel.scale = {self.scale!r}: "
        f"{catalogue.near_misses(str(self.scale), list(SCALES))}"
      )
    if not (self.floor > 0 and self.std > 0):
      raise ValueError(
        f"log_mel.floor = {self.floor} and .std = {self.std}, expected above 0"
      )
    if not 0 <= self.fmin < self.highest <= self.rate / 2:
      raise ValueError(
        f"log_mel.fmin = {self.fmin} and .fmax = {self.fmax}, expected 0 <= fmin < "
        f"fmax <= rate / 2 = {self.rate / 2:g} Hz"
      )
    empty = np.flatnonzero(~self.filters.any(axis=0))
    if len(empty):
      raise ValueError(
        f"log_mel.mels = {self.mels}: {len(empty)} bands, the first of them "
        f"{empty[0]}, hold no frequency of the DFT, which are rate / n_fft = "
        f"{self.rate} / {self.n_fft} Hz apart; lower mels, or raise n_fft or fmin"
      )

  @property
  def highest(self) -> float:
    """Returns fmax in Hz, resolved."""
    return self.fmax or self.rate / 2

  @functools.cached_property
  def window(self) -> np.ndarray:
    """f64[n_fft]: periodic Hann, such that a tone of amplitude 1 has power 1 / 4."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.n_fft) / self.n_fft)
    return hann / hann.sum()

  @functools.cached_property
  def filters(self) -> np.ndarray:
    """f64[n_fft // 2 + 1, mels]: what each band takes of each frequency."""
    low, high = (_to_mel(f, self.scale) for f in (self.fmin, self.highest))
    edges = _to_hz(np.linspace(low, high, self.mels + 2), self.scale)
    bins = np.arange(self.n_fft // 2 + 1)[:, None] * self.rate / self.n_fft
    left, middle, right = edges[:-2], edges[1:-1], edges[2:]
    up, down = (bins - left) / (middle - left), (right - bins) / (right - middle)
    triangles = np.clip(np.minimum(up, down), 0, None)
    return triangles * (2 / (right - left)) if self.scale == "slaney" else triangles

  def frames(self, samples: int) -> int:
    """Returns the frames of so many samples: those centred on one of them."""
    return -(-samples // self.hop)


def log_mel(x: np.ndarray, options: LogMel) -> np.ndarray:
  """Returns f32[frames, mels] of a waveform f32[samples]."""
  half = options.n_fft // 2
  padded = np.pad(x, (half, options.n_fft - half))
  frames = np.lib.stride_tricks.sliding_window_view(padded, options.n_fft)
  frames = frames[: len(x) : options.hop] * options.window
  power = np.abs(np.fft.rfft(frames)) ** 2
  bands = np.log(np.maximum(power @ options.filters, options.floor))
  return ((bands - options.mean) / options.std).astype(np.float32)


# Slaney's Auditory Toolbox: 3 mels per 200 Hz, and above 1 kHz 27 per factor of 6.4.
_LINEAR, _BREAK, _STEP = 200 / 3, 1000.0, np.log(6.4) / 27


def _to_mel(hz: float, scale: str) -> float:
  if scale == "htk":
    return 2595 * np.log10(1 + hz / 700)
  above = _BREAK / _LINEAR + np.log(max(hz, _BREAK) / _BREAK) / _STEP
  return hz / _LINEAR if hz < _BREAK else above


def _to_hz(mel: np.ndarray, scale: str) -> np.ndarray:
  if scale == "htk":
    return 700 * (10 ** (mel / 2595) - 1)
  start = _BREAK / _LINEAR
  above = _BREAK * np.exp(_STEP * (np.maximum(mel, start) - start))
  return np.where(mel < start, mel * _LINEAR, above)
