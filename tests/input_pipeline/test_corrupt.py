"""Every corruption damages more the more severe it is, and draws by its generator."""

import colorsys

import numpy as np
import pytest

from input_pipeline.transforms import corrupt


def photo():
  """A picture of waves, fine and coarse: what noise, blur and blocks each change."""
  y, x = np.mgrid[:112, :128]
  waves = [np.sin(x / a + y / b) for a in (1.3, 2.9, 7) for b in (1.7, 4.1, 9)]
  image = np.stack([sum(waves[i::3]) for i in range(3)], axis=-1)
  return np.rint(120 + 25 * image).astype(np.uint8)


def damage(kind, severity, seed=0):
  made = corrupt.Transform(kind=kind, severity=severity)
  return made({"image": photo()}, np.random.default_rng(seed))["image"]


@pytest.mark.parametrize("kind", sorted(corrupt.STRENGTHS))
def test_severities_are_severe(kind):
  clean = photo().astype(float)
  change = []
  for severity in range(1, 6):
    image = damage(kind, severity)
    assert image.dtype == np.uint8 and image.shape == clean.shape
    change.append(np.abs(image - clean).mean())
    np.testing.assert_array_equal(image, damage(kind, severity))
  assert change[0] > 0
  assert change == sorted(change), change


def test_strengths_are_what_they_say():
  grey = np.full((64, 64, 3), 128, np.uint8)

  def made(kind, severity, image=grey):
    rng = np.random.default_rng(0)
    return corrupt.Transform(kind=kind, severity=severity)({"image": image}, rng)[
      "image"
    ]

  assert made("gaussian_noise", 1).std() == pytest.approx(0.08 * 255, rel=0.03)
  shot = made("shot_noise", 1) / 255
  assert shot.std() == pytest.approx((128 / 255 / 60) ** 0.5, rel=0.03)
  assert np.isin(made("impulse_noise", 5), (0, 255)).mean() == pytest.approx(
    0.27, abs=0.01
  )
  assert (made("brightness", 2) == 128 + 51).all()
  half = photo()
  assert made("contrast", 1, half).std() == pytest.approx(0.4 * half.std(), rel=0.05)
  hole = made("occlusion", 4, np.zeros((64, 64, 3), np.uint8))
  assert (hole == 128).mean() == 0.25


def test_brightness_is_added_to_the_value_of_hsv():
  y, x = np.mgrid[:64, :64]
  image = np.stack([4 * x, 4 * y, (3 * x + y) % 256], axis=-1).astype(np.uint8)
  image[0, 0] = 200, 30, 30
  image[0, 1] = 0
  made = corrupt.Transform(kind="brightness", severity=5)
  got = made({"image": image}, np.random.default_rng(0))["image"]
  assert got[0, 0].tolist() == [255, 38, 38]
  assert got[0, 1].tolist() == [128] * 3
  want = np.empty_like(image)
  for at in np.ndindex(64, 64):
    hue, saturation, value = colorsys.rgb_to_hsv(*(image[at] / 255))
    bright = colorsys.hsv_to_rgb(hue, saturation, min(value + 0.5, 1))
    want[at] = np.rint(255 * np.array(bright))
  assert np.abs(got.astype(int) - want).max() <= 1  # halves, in f32 or f64
  assert (got != want).mean() < 0.05


@pytest.mark.parametrize("kind", sorted(corrupt.STRENGTHS))
def test_what_is_no_longer_uint8_is_refused(kind):
  made = corrupt.Transform(kind=kind)
  for image, found in (
    (photo().astype(np.float32), r"float32\[112, 128, 3\]"),
    (photo()[..., 0], r"uint8\[112, 128\]"),
    (b"bytes", "bytes"),
  ):
    with pytest.raises(ValueError, match=rf"h, w, 3\], not .*{found}.* before color"):
      made({"image": image}, np.random.default_rng(0))


def test_errors():
  with pytest.raises(ValueError, match="kind = 'fog'"):
    corrupt.Transform(kind="fog")
  with pytest.raises(ValueError, match="severity = 0 from 1 to 5"):
    corrupt.Transform(kind="blur", severity=0)
