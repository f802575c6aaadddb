"""Barlow Twins against its sums in f64."""

import jax
import numpy as np
import pytest

from model.losses import barlow
from model.objectives import contrastive
from model.types import Encoded
from tests import slopes

B, D, EPSILON = 7, 4, 1e-5
VALID = np.arange(B) != 2


def loop(z, redundancy=0.3):
  a, b = z["image"][VALID], z["text"][VALID]
  a, b = ((x - x.mean(0)) / np.sqrt(x.var(0) + EPSILON) for x in (a, b))
  total = 0.0
  for k in range(D):
    for n in range(D):
      c = np.mean(a[:, k] * b[:, n])
      total += (1 - c) ** 2 if k == n else redundancy * c**2
  return total


def run(loss, z, batch):
  f = jax.jit(jax.value_and_grad(lambda z, batch: loss({}, z, batch), has_aux=True))
  return jax.device_get(f(z, batch))


def test_value_and_slope_are_the_double_loop():
  z = {m: 3 * x for m, x in slopes.unit(B, D).items()}
  loss = barlow.Loss(redundancy=0.3)
  metrics = slopes.assert_is(loss, loop, z, {"valid": VALID})
  total = metrics["barlow/on_image_text"] + 0.3 * metrics["barlow/off_image_text"]
  np.testing.assert_allclose(
    total, loop({m: np.float64(x) for m, x in z.items()}), 3e-6
  )


def test_scale_multiplies():
  z = slopes.unit(B, D)
  one, small = (run(barlow.Loss(scale=s), z, {})[0][0] for s in (1.0, 0.024))
  np.testing.assert_allclose(small, 0.024 * one, rtol=1e-6)


def test_modalities_that_agree_in_uncorrelated_dimensions_are_perfect():
  x = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
  (value, _), _ = run(barlow.Loss(), {"image": x, "text": 5 * x + 2}, {})
  np.testing.assert_allclose(value, 0, atol=1e-8)
  (value, metrics), _ = run(barlow.Loss(), {"image": x, "text": x[:, ::-1]}, {})
  np.testing.assert_allclose(value, 2 + 2 * 0.0051, rtol=1e-4)
  np.testing.assert_allclose(metrics["barlow/on_image_text"], 2, rtol=1e-4)


def test_it_gets_embeddings_that_are_not_normalised():
  z = {
    m: (1 + np.arange(B, dtype=np.float32))[:, None] * x
    for m, x in slopes.unit(B, D).items()
  }
  objective = contrastive.Objective(losses=(("barlow", 1.0, {}),))
  key = jax.random.key(0)
  out = objective(
    {}, {}, lambda _, using: {m: Encoded(x) for m, x in z.items()}, {}, key, 0
  )
  np.testing.assert_allclose(out.loss, run(barlow.Loss(), z, {})[0][0], rtol=1e-6)
  unit = run(barlow.Loss(), slopes.unit(B, D), {})[0][0]
  assert abs(float(out.loss - unit)) > 1e-2


@pytest.mark.parametrize("valid", [np.zeros(B, bool), np.arange(B) == 1])
def test_one_row_says_nothing(valid):
  """A batch of one has no variance: its correlations, and their slopes, are 0."""
  (value, _), grad = run(barlow.Loss(), slopes.unit(B, D), {"valid": valid})
  assert value == (D if valid.any() else 0)
  assert all(np.all(g == 0) for g in grad.values())


def test_options_that_make_no_sense():
  with pytest.raises(ValueError, match=r"epsilon = 0\.0 must be above 0"):
    barlow.Loss(epsilon=0.0)
