"""Bands are as wide as asked for, among real frames, and each example's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.views import spec_augment

B, T, F = 256, 30, 12
KEY = jax.random.key(1)
X = 1 + np.random.default_rng(0).uniform(size=(B, T, F)).astype(np.float32)
LENGTH = np.where(np.arange(B) % 2, T, 10)
MASK = np.arange(T) < LENGTH[:, None]


def blanked(**options):
  view = spec_augment.View(**options)
  out = view({"audio": X, "audio_mask": MASK, "id": np.arange(B)}, KEY)
  assert out["audio"].dtype == jnp.float32
  np.testing.assert_array_equal(out["audio_mask"], MASK)
  got = np.asarray(out["audio"])
  np.testing.assert_array_equal(got[got != 0], X[got != 0])
  return got == 0


def test_bands_of_time():
  gone = blanked(time_masks=1, time_width=8, time_share=0.5, frequency_masks=0)
  assert (gone == gone[:, :, :1]).all(), "whole frames"
  frames = gone[:, :, 0]
  assert not frames[~MASK].any(), "among the real ones"
  width = frames.sum(axis=1)
  assert set(width[LENGTH == T]) == set(range(9)), "uniform from 0 to the greatest"
  assert set(width[LENGTH == 10]) == set(range(6)), "of a short sound, half"
  assert (np.abs(np.diff(frames.astype(int), axis=1)).sum(axis=1) <= 2).all(), (
    "one band"
  )
  starts = frames.argmax(axis=1)[width > 0]
  assert len(set(starts)) > 10
  assert frames[:, 0].any() and frames[LENGTH == T, -1].any(), "up to both ends"


def test_bands_of_frequency_and_both():
  options = dict(time_masks=0, frequency_masks=2, frequency_width=3)
  gone = blanked(**options)
  channel = spec_augment.View(**options)({"audio": X[..., None]}, KEY)["audio"]
  np.testing.assert_array_equal(channel[..., 0] == 0, gone)
  assert (gone == gone[:, :1]).all()
  width = gone[:, 0].sum(axis=1)
  assert set(width) == set(range(7))
  both = blanked(time_masks=3, time_width=4, time_share=1.0, frequency_width=3)
  assert both.any(axis=2).all(axis=1).any() or both.mean() > 0.2


def test_off_is_the_same_and_errors_say_what_to_do():
  assert not blanked(time_masks=0, frequency_masks=0).any()
  with pytest.raises(ValueError, match=r"\(2, 5\). Of a waveform, .* the view log_mel"):
    spec_augment.View()({"audio": jnp.zeros((2, 5))}, KEY)
  with pytest.raises(ValueError, match=r"time_share = 2 must be in \[0, 1\]"):
    spec_augment.View(time_share=2)
  with pytest.raises(ValueError, match="time_width = -1, expected 0 or more"):
    spec_augment.View(time_width=-1)
