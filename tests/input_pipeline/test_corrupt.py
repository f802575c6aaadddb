"""Every corruption damages more the more severe it is, and draws by its generator."""

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


def test_errors():
  with pytest.raises(ValueError, match="kind = 'fog'"):
    corrupt.Transform(kind="fog")
  with pytest.raises(ValueError, match="severity = 0 from 1 to 5"):
    corrupt.Transform(kind="blur", severity=0)
