"""VICReg against its sums in f64."""

import jax
import numpy as np
import pytest

from model.losses import vicreg
from tests import slopes

B, D, EPSILON = 7, 4, 1e-4
VALID = np.arange(B) != 2
WEIGHTS = dict(invariance=3.0, variance=2.0, covariance=0.7)


def parts(z):
  """Invariance, variance and covariance, one dimension at a time."""
  a, b = z["image"][VALID], z["text"][VALID]
  n, apart, short, cov = len(a), 0.0, 0.0, 0.0
  for k in range(D):
    apart += np.sum((a[:, k] - b[:, k]) ** 2) / (n * D)
    for x in (a, b):
      short += max(0.0, 1 - np.sqrt(x[:, k].var(ddof=1) + EPSILON)) / (2 * D)
      for m in range(D):
        c = np.sum((x[:, k] - x[:, k].mean()) * (x[:, m] - x[:, m].mean())) / (n - 1)
        cov += (k != m) * c**2 / D
  return apart, short, cov


def loop(z):
  return sum(w * x for w, x in zip(WEIGHTS.values(), parts(z)))


def run(loss, z, batch):
  f = jax.jit(jax.value_and_grad(lambda z, batch: loss({}, z, batch), has_aux=True))
  return jax.device_get(f(z, batch))


def test_value_and_slope_are_the_double_loop():
  # Some dimensions vary by more than 1: the hinge is both open and shut.
  grow = np.array([[0.5, 1.0, 3.0, 5.0]], np.float32)
  z = {m: grow * x for m, x in slopes.unit(B, D).items()}
  metrics = slopes.assert_is(vicreg.Loss(**WEIGHTS), loop, z, {"valid": VALID})
  want = parts({m: x.astype(np.float64) for m, x in z.items()})
  assert 0 < want[1] < 1
  for name, x in zip(WEIGHTS, want):
    np.testing.assert_allclose(metrics[f"vicreg/{name}_image_text"], x, rtol=3e-6)


def test_a_collapsed_batch_pays_for_its_variance_and_can_leave():
  z = {m: np.ones((B, D), np.float32) for m in ("image", "text")}
  (value, _), grad = run(vicreg.Loss(), z, {})
  np.testing.assert_allclose(value, 25 * (1 - EPSILON**0.5), rtol=1e-6)
  assert all(np.isfinite(g).all() for g in grad.values())
  z["image"][0, 0] += 0.01
  assert run(vicreg.Loss(), z, {})[1]["image"][0, 0] < 0


def test_spread_and_uncorrelated_pairs_that_agree_are_perfect():
  x = 2 * np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
  (value, _), _ = run(vicreg.Loss(), {"image": x, "text": x}, {})
  np.testing.assert_allclose(value, 0, atol=1e-8)


@pytest.mark.parametrize("valid", [np.zeros(B, bool), np.arange(B) == 1])
def test_one_row_has_no_variance(valid):
  z = slopes.unit(B, D)
  (value, _), grad = run(vicreg.Loss(), z, {"valid": valid})
  apart = np.mean((z["image"] - z["text"])[valid] ** 2) if valid.any() else 0.0
  want = 25 * (apart + (1 - EPSILON**0.5)) if valid.any() else 0.0
  np.testing.assert_allclose(value, want, rtol=1e-6)
  assert all(np.isfinite(g).all() and np.all(g[~valid] == 0) for g in grad.values())


def test_options_that_make_no_sense():
  with pytest.raises(ValueError, match=r"epsilon = 0\.0 must be above 0"):
    vicreg.Loss(epsilon=0.0)
