"""Sound: decoded, cut, resampled; its spectrogram by loops, scipy and the device."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from configs import base
from input_pipeline import pipeline
from input_pipeline.drop import Drop
from input_pipeline.transforms import decode_audio
from input_pipeline.transforms import log_mel as on_host
from model import mel
from model.layers import log_mel as on_device
from model.views import log_mel as view

RATE = 4000


def tone(hz=440.0, seconds=1.0, rate=RATE, channels=1):
  x = 0.5 * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)
  return np.repeat(x[:, None], channels, axis=1).astype(np.float32)


def encoded(x, rate=RATE, kind="WAV", subtype=None):
  file = io.BytesIO()
  soundfile.write(file, x, rate, format=kind, subtype=subtype)
  return file.getvalue()


def decode(data, seed=0, **options):
  given = dict(rate=RATE, seconds=1.0, crop="first") | options
  rng = np.random.default_rng(seed)
  return decode_audio.Transform(**given)({"audio_bytes": data, "id": 3}, rng)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_formats_channels_and_lengths(kind):
  out = decode(encoded(tone(channels=2, seconds=0.6), kind=kind))
  assert out.keys() == {"id", "waveform", "waveform_mask", "waveform_rate"}
  assert out["waveform"].shape == (RATE,) and out["waveform"].dtype == np.float32
  n = 2400
  np.testing.assert_array_equal(out["waveform_mask"], np.arange(RATE) < n)
  assert not out["waveform"][n:].any()
  near = 0.1 if kind == "OGG" else 1e-4
  np.testing.assert_allclose(out["waveform"][:n], tone(seconds=0.6)[:, 0], atol=near)


def test_channels_are_averaged():
  x = np.concatenate([tone(300), -0.5 * tone(300)], axis=1)
  out = decode(encoded(x))["waveform"]
  np.testing.assert_allclose(out, 0.25 * tone(300)[:, 0], atol=1e-4)


@pytest.mark.parametrize("rate", [44_100, 8000, 3001])
def test_another_rate_is_the_same_tone(rate):
  out = decode(encoded(tone(rate=rate), rate))
  middle = slice(400, -400)  # a filter is settled in there
  near = np.abs(out["waveform"] - tone()[:, 0])[middle].max()
  assert near < 3e-3 and out["waveform_mask"].sum() > RATE - 3


def test_crops_are_of_the_generator_and_cover_the_sound():
  ramp = np.linspace(-1, 1, 5 * RATE, dtype=np.float32)
  data = encoded(ramp, kind="FLAC")
  first = decode(data)["waveform"]
  np.testing.assert_allclose(first, ramp[:RATE], atol=1e-4)
  starts = [decode(data, seed, crop="random")["waveform"][0] for seed in range(40)]
  assert decode(data, 7, crop="random")["waveform"][0] == starts[7]
  assert min(starts) < -0.9 and 0.4 < max(starts) < 0.61


def wav_claiming(frames):
  """A WAV of 10 samples whose header claims so many."""
  data = bytearray(encoded(tone()[:10]))
  data[4:8] = (2 * frames + 36).to_bytes(4, "little")
  data[40:44] = (2 * frames).to_bytes(4, "little")
  return bytes(data)


@pytest.mark.parametrize(
  ("data", "reason"),
  [
    (b"", "empty audio"),
    (encoded(tone()[:0]), "empty audio"),
    (b"ID3\x03 an mp3", "not audio"),
    (None, "not audio"),
    (b"RIFF\x10\0\0\0WAVEjunk", "broken audio"),
    (b"fLaCjunk", "broken audio"),
    (b"OggS", "truncated audio"),
    (encoded(tone(), kind="FLAC")[:600], "truncated audio"),
    (encoded(tone(channels=9)), "too many channels"),
    (encoded(tone(), 500), "odd sample rate"),
    (encoded(tone() * np.nan, subtype="FLOAT"), "broken audio"),
    (encoded(tone() * 1e30, subtype="FLOAT"), "broken audio"),
    (encoded(tone(), kind="AIFF"), "not audio"),
  ],
)
def test_unusable(data, reason):
  with pytest.raises(Drop, match=f"^{reason}$"):
    decode(data)


def test_a_header_that_promises_hours_costs_nothing():
  out = decode(wav_claiming(2**30), crop="random")
  assert out["waveform_mask"].sum() == 10
  with pytest.raises(Drop, match="not audio"):
    decode(encoded(tone()), formats=("ogg",))


@pytest.mark.parametrize("crop", ["first", "random"])
@pytest.mark.parametrize(
  ("kind", "subtype"),
  [
    ("WAV", "PCM_16"),
    ("WAV", "IMA_ADPCM"),
    ("FLAC", None),
    ("OGG", "VORBIS"),
    ("OGG", "OPUS"),
  ],
)
def test_truncated_sound_drops_wherever_the_crop_lies(kind, subtype, crop):
  noise = 0.1 * np.random.default_rng(0).standard_normal(32_000)
  data = encoded(noise, 16_000, kind=kind, subtype=subtype)
  given = dict(rate=16_000, seconds=0.1, crop=crop)
  assert decode(data + b"TAG" + bytes(125), **given)["waveform_mask"].all()
  for part in (0.3, 0.6, 0.9, 0.98):
    for seed in range(4):
      with pytest.raises(Drop, match=r"^truncated audio$"):
        decode(data[: int(len(data) * part)], seed, **given)
  with pytest.raises(Drop, match=r"^truncated audio$"):
    decode(data[:-1], **given)


def test_what_a_wav_says_of_its_length():
  x = tone()[:10]
  data = bytearray(encoded(x))
  odd = b"LIST\3\0\0\0abc\0"  # a chunk before the samples, of odd length and padded
  whole = bytes(data[:36] + odd + data[36:])
  assert decode(whole)["waveform_mask"].sum() == 10
  with pytest.raises(Drop, match=r"^truncated audio$"):
    decode(whole[:-2])
  for unknown in (0x7FFFF000, 0xFFFFFFFF):  # of recorders that write to a pipe
    data[40:44] = unknown.to_bytes(4, "little")
    assert decode(bytes(data))["waveform_mask"].sum() == 10
  with pytest.raises(Drop, match=r"^truncated audio$"):
    decode(wav_claiming(11))


def test_an_ogg_need_not_mark_its_last_page():
  noise = 0.1 * np.random.default_rng(0).standard_normal(20 * RATE)
  data = encoded(noise, kind="OGG")
  pages = data[: data.rfind(b"OggS")]  # as a third of KLettres' files are
  assert decode(pages, seconds=0.1)["waveform_mask"].all()


def test_a_flac_without_its_length_drops():
  data = bytearray(encoded(tone(), kind="FLAC"))
  data[21] &= 0xF0
  data[22:26] = bytes(4)
  for crop in ("first", "random"):
    with pytest.raises(Drop, match=r"^truncated audio$"):
      decode(bytes(data), seconds=0.5, crop=crop)


def options(**changes):
  given = dict(rate=RATE, n_fft=256, hop=100, mels=20) | changes
  return mel.LogMel(**given)


to_device = jax.jit(on_device.log_mel, static_argnums=2)


def signal(n=2000, seed=0):
  """A chirp that ends in the middle, over noise 60 dB below."""
  at = np.arange(n) / RATE
  x = 0.8 * np.sin(2 * np.pi * (200 + 1500 * at) * at) * (at < 0.6 * n / RATE)
  return (x + 8e-4 * np.random.default_rng(seed).standard_normal(n)).astype(np.float32)


def reference(x, o):
  """By the definition: a loop over frames, bins and bands; the filters by np.interp."""
  half, n = o.n_fft // 2, o.n_fft
  padded = np.concatenate([np.zeros(half), x, np.zeros(n)]).astype(np.float64)
  window = np.sin(np.pi * np.arange(n) / n) ** 2
  if o.scale == "htk":
    to_mel = lambda f: 1127.01048 * np.log(1 + f / 700)  # noqa: E731
  else:
    to_mel = lambda f: np.where(  # noqa: E731
      f < 1000, f * 0.015, 15 + 27 * np.log(np.maximum(f, 1) / 1000) / np.log(6.4)
    )
  fine = np.linspace(0, o.rate / 2, 200_001)
  low, high = to_mel(np.float64(o.fmin)), to_mel(np.float64(o.highest))
  edges = np.interp(np.linspace(low, high, o.mels + 2), to_mel(fine), fine)
  bins = np.arange(half + 1) * o.rate / n
  rows = []
  for start in range(0, len(x), o.hop):
    frame = padded[start : start + n] * window / window.sum()
    k = np.arange(half + 1)[:, None]
    power = np.abs((frame * np.exp(-2j * np.pi * k * np.arange(n) / n)).sum(1)) ** 2
    row = []
    for i in range(o.mels):
      left, middle, right = edges[i : i + 3]
      triangle = np.interp(bins, [left, middle, right], [0, 1, 0], left=0, right=0)
      area = (right - left) / 2 if o.scale == "slaney" else 1.0
      row.append((power * triangle).sum() / area)
    rows.append(row)
  return (np.log(np.maximum(np.asarray(rows), o.floor)) - o.mean) / o.std


@pytest.mark.parametrize(
  "changes",
  [
    {},
    dict(scale="htk", floor=1e-7, fmin=100.0, fmax=1800.0),
    dict(hop=256, n_fft=250, mels=10, mean=-9.0, std=4.0),
  ],
)
def test_the_spectrogram_is_its_definition_on_host_and_device(changes):
  o, x = options(**changes), signal()
  host = mel.log_mel(x, o)
  assert host.shape == (o.frames(len(x)), o.mels) and host.dtype == np.float32
  np.testing.assert_allclose(host, reference(x, o), atol=1e-4)
  device, mask = to_device(jnp.asarray(x)[None], None, o)
  assert mask is None and device.dtype == jnp.float32
  np.testing.assert_allclose(device[0], host, atol=1e-4)


def test_the_spectrum_is_scipys():
  from scipy import signal as scipy_signal

  o, x = options(mels=1, floor=1e-30), signal()
  _, _, z = scipy_signal.stft(
    x.astype(np.float64), RATE, "hann", o.n_fft, o.n_fft - o.hop, padded=False
  )
  power = np.abs(z.T) ** 2 @ o.filters
  got = mel.log_mel(x, o)
  np.testing.assert_allclose(got[: len(power)], np.log(power)[: len(got)], atol=1e-5)
  assert abs(len(got) - len(power)) <= 2


def test_padding_is_silence_and_its_frames_are_masked_in_both_places():
  x = np.stack([signal(seed=i) for i in range(2)])
  real = np.arange(2000) < np.array([[2000], [1101]])
  o = options()
  clean, mask = to_device(np.where(real, x, np.float32(0)), real, o)
  dirty, _ = to_device(np.where(real, x, np.float32(np.nan)), real, o)
  np.testing.assert_array_equal(clean, dirty)
  np.testing.assert_array_equal(mask.sum(axis=1), [20, 12])
  host = on_host.Transform(rate=RATE, n_fft=256, hop=100, mels=20)
  example = dict(waveform=np.where(real, x, 0)[1], waveform_mask=real[1])
  other = dict(waveform_b=x[0], waveform_b_mask=real[0], waveforms=1)
  out = host(example | dict(waveform_rate=RATE, **other), np.random.default_rng(0))
  assert out.keys() == {"audio", "audio_mask", *other}
  np.testing.assert_array_equal(out["audio_mask"], mask[1])
  np.testing.assert_allclose(out["audio"], clean[1], atol=1e-4)
  seen = view.View(rate=RATE, n_fft=256, hop=100, mels=20)(
    {"audio": jnp.asarray(x), "audio_mask": jnp.asarray(real), "id": 3},
    jax.random.key(0),
  )
  np.testing.assert_array_equal(seen["audio"], clean)
  np.testing.assert_array_equal(seen["audio_mask"], mask)
  with pytest.raises(ValueError, match=r"reads waveforms \[b, s\]; audio is"):
    view.View()(seen, jax.random.key(0))


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    (dict(mels=400), r"mels = 400: \d+ bands, the first of them .*, hold no frequency"),
    (dict(fmax=2001.0), r"fmax = 2001.0, expected .* <= rate / 2 = 2000 Hz"),
    (dict(scale="slany"), "did you mean slaney"),
    (dict(hop=0), "log_mel.hop = 0, expected 1 or more"),
    (dict(floor=0.0), "expected above 0"),
  ],
)
def test_options_that_cannot_be(changes, match):
  with pytest.raises(ValueError, match=match):
    options(**changes)


def recipe(audio, *transforms):
  c = base.get_config()
  c.model.modalities.audio = base.modality(size=(40, 20, 1), patch=(10, 20), **audio)
  c.data.transforms = transforms
  return c


WAVEFORM = dict(log_mel=dict(rate=RATE, hop=100, n_fft=256))


@pytest.mark.parametrize(
  ("audio", "transform", "match"),
  [
    (
      {},
      ("log_mel", dict(mels=30)),
      r"log_mel.mels = 30, but config.model.modalities.audio.size = \(40, 20, 1\)",
    ),
    ({}, ("log_mel", dict(hops=30)), "unknown key .*log_mel.hops: did you mean hop"),
    ({}, ("decode_audio", {}), r"needs the options \['rate', 'seconds'\]"),
    (
      WAVEFORM,
      ("decode_audio", dict(key="audio", rate=8000)),
      "decode_audio.rate = 8000, .*log_mel.rate = 4000: rate = 4000",
    ),
    (WAVEFORM, ("log_mel", {}), "on the device: remove one of them"),
  ],
)
def test_wrong_settings_name_their_keys(audio, transform, match):
  with pytest.raises(ValueError, match=match):
    pipeline.transforms(recipe(audio, transform), "transforms")


def test_rates_and_lengths_come_from_the_model_or_must_agree():
  c = recipe(WAVEFORM, ("decode_audio", dict(key="audio")))
  ((_, made),) = pipeline.transforms(c, "transforms")
  assert (made.rate, made.seconds, made.samples) == (RATE, 1.0, 4000)
  out = made({"audio_bytes": encoded(tone())}, np.random.default_rng(0))
  assert out["audio"].shape == (4000,)
  host = on_host.Transform(rate=8000)
  with pytest.raises(ValueError, match=r"log_mel.rate = 8000, .* 4000 samples per sec"):
    host(decode(encoded(tone())), np.random.default_rng(0))
