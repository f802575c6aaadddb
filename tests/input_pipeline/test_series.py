"""Series: cut, padded and standardised, from arrays, lists and files."""

import io

import numpy as np
import pytest

from configs import base
from input_pipeline import pipeline
from input_pipeline.drop import Drop
from input_pipeline.transforms import series


def npy(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


def make(value, seed=0, **options):
  given = dict(length=10, channels=3, crop="first", standardise=False) | options
  made = series.Transform(**given)
  out = made({"values": value, "id": 1}, np.random.default_rng(seed))
  assert out.keys() == {"id", "series", "series_mask"}
  assert out["series"].dtype == np.float32
  return out["series"], out["series_mask"]


NOISE = np.random.default_rng(3).standard_normal((25, 3))


@pytest.mark.parametrize("form", ["array", "lists", "npy", "fortran", "ints"])
def test_forms(form):
  x = NOISE
  if form == "ints":
    x = (9 * NOISE).astype(np.int16)
  value = {"array": x, "ints": x, "lists": x.tolist()}.get(form)
  value = (
    npy(np.asfortranarray(x) if form == "fortran" else x) if value is None else value
  )
  got, mask = make(value)
  np.testing.assert_allclose(got, x[:10], rtol=1e-6)
  assert mask.all()


def test_short_ones_are_padded_and_long_ones_are_cut_anywhere():
  got, mask = make(NOISE[:4], standardise=True)
  np.testing.assert_array_equal(mask, np.arange(10) < 4)
  assert not got[4:].any()
  ramp = np.arange(14.0)
  starts = {
    int(make(ramp, seed, channels=1, crop="random")[0][0, 0]) for seed in range(50)
  }
  assert starts == {0, 1, 2, 3, 4}


def test_channels_are_standardised_by_themselves():
  x = np.concatenate([NOISE[:, :2] * [5, 0.1] + [3, -1], np.full((25, 1), 0.1)], axis=1)
  got, _ = make(x, length=25, standardise=True)
  np.testing.assert_allclose(got.mean(axis=0), 0, atol=1e-6)
  np.testing.assert_allclose(got.std(axis=0), [1, 1, 0], atol=1e-6)
  got, _ = make(x, mean=(1.0, 2.0, 3.0), std=(2.0, 4.0, 5.0))
  np.testing.assert_allclose(got, (x[:10] - [1, 2, 3]) / [2, 4, 5], rtol=1e-5)


def standardised(*values, **options):
  got, _ = make(np.array(values), length=len(values), channels=1, **options)
  return got[:, 0]


def test_large_numbers_are_kept_or_drop_but_are_not_cut():
  x = (1e7, 2e7, 3e7)
  np.testing.assert_array_equal(standardised(*x), np.float32(x))
  for options in ({}, dict(std=(0.1,)), dict(mean=(-1e308,), standardise=True)):
    with pytest.raises(Drop, match=r"^series not finite$"):
      standardised(1e308, 1.1e308, 1e308, **options)


def test_only_a_constant_is_constant_whatever_its_magnitude():
  want = np.array([-1, 0, 1]) * 1.5**0.5
  for x in (
    (0, 1, 2),
    (1e12, 1e12 + 1, 1e12 + 2),
    (-1e308, 0, 1e308),
    (0, 1e-300, 2e-300),
  ):
    got = standardised(*x, standardise=True)
    np.testing.assert_allclose(got, want, atol=1e-6)
  for x in ((0.1,) * 1000, (1e308,) * 3, (0.0,) * 3, (0.1, np.nextafter(0.1, 1), 0.1)):
    assert not standardised(*x, standardise=True).any()


@pytest.mark.parametrize(
  ("value", "reason"),
  [
    (np.zeros((0, 3)), "empty series"),
    ([], "empty series"),
    ([[1, 2, 3], [1, 2]], "not a series"),
    (["a", "b"], "not a series"),
    (None, "not a series"),
    (b"1,2,3", "not a series"),
    (npy(np.array(["a"])), "not a series"),
    (npy(NOISE)[:-3], "truncated series"),
    (npy(NOISE)[:20], "broken series"),
    (NOISE[:, :2], "other channels"),
    (np.full((4, 3), np.nan), "series not finite"),
    (np.zeros((4, 3), complex), "not a series"),
  ],
)
def test_unusable(value, reason):
  with pytest.raises(Drop, match=f"^{reason}$"):
    make(value)


def test_sizes_come_from_the_model_and_wrong_settings_say_so():
  c = base.get_config()
  c.model.modalities.series = base.modality(size=(64, 6, 1), patch=(8, 6))
  c.data.transforms = (("series", {}),)
  ((_, made),) = pipeline.transforms(c, "transforms")
  assert (made.length, made.channels) == (64, 6)
  for options, match in (
    (dict(mean=(1.0,)), "series.mean has 1 numbers, expected one for each of 6"),
    (dict(std=(0.0,) * 6), "above 0"),
    (dict(crop="last"), "'random' or 'first'"),
    (dict(stnd=1), "unknown key .*series.stnd: did you mean std"),
  ):
    c.data.transforms = (("series", options),)
    with pytest.raises(ValueError, match=match):
      pipeline.transforms(c, "transforms")
