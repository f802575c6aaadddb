"""Damaged sounds, videos, series, tunes: each an example or a Drop with a reason."""

import collections

import numpy as np
import pytest

from input_pipeline.transforms import decode_audio, decode_video, series, text_patches
from tests.input_pipeline import test_decode_video, test_series, test_text_patches
from tests.input_pipeline.test_audio import encoded, tone
from tests.input_pipeline.test_fuzz import checksums_repaired, mutated, outcome

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow's, of odd files
HEADER = (b"(9999999,", b"'|O'", b"'<f8'", b"True", b"-1", b"\xff\xff\xff\x7f", b"\0\0")


def sounds():
  x = tone(seconds=0.3)
  kinds = [("OGG", None), ("FLAC", None), ("WAV", "PCM_16"), ("WAV", "FLOAT")]
  files = [encoded(x, kind=kind, subtype=subtype) for kind, subtype in kinds]
  odd = [encoded(tone(channels=2)[:900], 8000, kind="OGG", subtype="OPUS")]
  return [*files, *odd, encoded(x, kind="WAV", subtype="IMA_ADPCM")]


def videos():
  clip = test_decode_video.frames(5)
  kinds = ("GIF", "WEBP", "PNG")
  animations = [test_decode_video.animation(clip, kind) for kind in kinds]
  return [*animations, test_decode_video.npy(clip)]


def fuzz(seeds, count, transform, key, check, pieces=HEADER):
  """Returns outcome -> how many of `count` mutations of each seed had it."""
  counts = collections.Counter()
  for i, data in enumerate(seeds):
    check(
      transform({key: data}, np.random.default_rng(i))
    )  # and imports take their time
    for seed in range(count):
      rng = np.random.default_rng((i, seed))
      bad = mutated(data, rng, seeds, pieces)
      if seed % 3 == 0:
        bad = checksums_repaired(bad)

      def call(bad=bad, rng=rng):
        out = transform({key: bad}, rng)
        check(out)
        return out

      counts[outcome(call)] += 1
  print(f"{key}: {counts.total()}: {dict(counts.most_common())}")
  return counts


def finite(name, shape, most):
  def check(out):
    assert out[name].shape == shape and out[f"{name}_mask"].shape == shape[:1]
    assert out[f"{name}_mask"].any() and np.abs(out[name]).max() <= most

  return check


def all_kinds(scale):
  audio = decode_audio.Transform(rate=2000, seconds=0.2)
  video = decode_video.Transform(frames=3, size=(4, 4), max_pixels=2**20)
  lists = series.Transform(length=8, channels=3)
  tunes = text_patches.Transform(length=8, chars=6)
  numbers = [test_series.npy(test_series.NOISE.astype(t)) for t in ("f4", ">i2", "f8")]
  texts = [test_text_patches.TUNE.encode(), "|:é2 🎵|\n".encode() * 9]
  return {
    "audio": fuzz(
      sounds(), 12 * scale, audio, "audio_bytes", finite("waveform", (400,), 200)
    ),
    "video": fuzz(
      videos(), 15 * scale, video, "video_bytes", finite("video", (3, 4, 4, 3), 1)
    ),
    "series": fuzz(numbers, 15 * scale, lists, "values", finite("series", (8, 3), 1e6)),
    "tunes": fuzz(texts, 15 * scale, tunes, "abc", finite("music", (8, 6), 127)),
  }


def check_reasons(found):
  for kind, counts in found.items():
    assert counts["example"] and len(counts) > 1, kind
  assert {"not audio", "broken audio"} <= set(found["audio"])
  assert {"not a video", "broken video"} <= set(found["video"])
  assert {"truncated series", "broken series"} <= set(found["series"])
  assert "text is not UTF-8" in found["tunes"]


def test_some():
  check_reasons(all_kinds(1))


@pytest.mark.slow
def test_thousands():
  check_reasons(all_kinds(30))
