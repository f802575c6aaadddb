"""Made-up things that look, sound and move as they are called: to try recipes on.

c.data.source = "synthetic"
c.data.options = dict(count=256)
"""

from collections.abc import Mapping
import dataclasses
import io
import wave
import zlib

import numpy as np

from input_pipeline.interfaces import Example

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 220)}
SHAPES = ("square", "bar", "cross", "corner")
_RATE, _SIDE = 8000, 24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """Twelve kinds of things, each in every modality, with noise of its own.

  An example holds `image` uint8[24, 24, 3], `captions`, `audio_bytes` (a WAV of a
  tone), `video_bytes` (a .npy of the image, moving), `values` f32[t, 3] (a series),
  `abc` (a tune), `id` and `label_kind`. What tells the kinds apart is colour and shape;
  pitch; direction; period; and the notes. Lengths vary.

  Attributes:
    split: has examples of its own.
    count: of examples.
    seed: of everything random.
  """

  split: str = "train"
  count: int = 240
  seed: int = 0

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns the kinds."""
    return {"kind": tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)}

  def __len__(self) -> int:
    return self.count

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < self.count:
      raise IndexError(f"example {i} of {self.count}")
    names = self.classes["kind"]
    kind = i % len(names)
    rng = np.random.default_rng((self.seed, zlib.crc32(self.split.encode()), i))
    image = _drawn(kind, rng)
    words = ("a {}", "the {}", "one {}")[int(rng.integers(3))]
    return {
      "image": image,
      "captions": {"en": (words.format(names[kind]),)},
      "audio_bytes": _tone(kind, rng),
      "video_bytes": _moving(kind, image, rng),
      "values": _waves(kind, rng),
      "abc": _tune(kind, rng),
      "id": kind,
      "label_kind": kind,
    }


def _drawn(kind: int, rng: np.random.Generator) -> np.ndarray:
  color, shape = divmod(kind, len(SHAPES))
  mask = np.zeros((12, 12), bool)
  {
    "square": lambda: mask[2:10, 2:10],
    "bar": lambda: mask[4:8],
    "cross": lambda: mask[:, 5:7],
    "corner": lambda: mask[:4],
  }[SHAPES[shape]]()[:] = True
  if SHAPES[shape] == "cross":
    mask[5:7] = True
  if SHAPES[shape] == "corner":
    mask[:, :4] = True
  image = rng.integers(215, 256, (_SIDE, _SIDE, 3)).astype(np.uint8)
  y, x = rng.integers(0, _SIDE - 11, 2)
  image[y : y + 12, x : x + 12][mask] = list(COLORS.values())[color]
  return image


def _tone(kind: int, rng: np.random.Generator) -> bytes:
  n = int(rng.integers(_RATE // 2, _RATE))
  hz = 200 * 2 ** (kind / 4) * rng.uniform(0.98, 1.02)
  x = 0.5 * np.sin(2 * np.pi * hz * np.arange(n) / _RATE + rng.uniform(0, 6))
  x += 0.02 * rng.standard_normal(n)
  file = io.BytesIO()
  with wave.open(file, "wb") as writer:
    writer.setnchannels(1)
    writer.setsampwidth(2)
    writer.setframerate(_RATE)
    writer.writeframes((32_000 * x.clip(-1, 1)).astype("<i2").tobytes())
  return file.getvalue()


def _moving(kind: int, image: np.ndarray, rng: np.random.Generator) -> bytes:
  angle = 2 * np.pi * kind / 12
  steps = np.arange(int(rng.integers(3, 12)))[:, None]
  shifts = np.rint(2 * steps * [np.sin(angle), np.cos(angle)]).astype(int)
  file = io.BytesIO()
  np.save(file, np.stack([np.roll(image, tuple(s), (0, 1)) for s in shifts]))
  return file.getvalue()


def _waves(kind: int, rng: np.random.Generator) -> np.ndarray:
  at = np.arange(int(rng.integers(20, 60)))[:, None] + rng.uniform(0, 30)
  x = np.sin(2 * np.pi * at / (4 + kind) + np.array([0, 1, 2]))
  return (x + 0.1 * rng.standard_normal(x.shape)).astype(np.float32)


def _tune(kind: int, rng: np.random.Generator) -> str:
  notes = "CDEFGABcdefg"
  bars = []
  for _ in range(int(rng.integers(3, 8))):
    steps = (0, *rng.permutation((0, 2, 4)), 0)
    bars.append("".join(notes[(kind + step) % len(notes)] for step in steps))
  return f"X:1\nL:1/8\nK:C\n{'|'.join(bars)}|]\n"
