"""SigLIP against a double loop in f64, and the slopes of its scale and bias."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.losses import siglip

B, D = 12, 8
LOG5 = float(np.log(5.0))


def make(seed=0):
  rng = np.random.default_rng(seed)
  z = {m: rng.normal(size=(B, D)) for m in ("image", "text")}
  return {
    m: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    for m, x in z.items()
  }


def loop(a, b, scale, bias, valid):
  """-1/b sum log sigmoid, one pair at a time."""
  total, rows = 0.0, [i for i in range(len(a)) if valid[i]]
  for i in rows:
    for j in rows:
      s = scale * float(a[i].astype(np.float64) @ b[j]) + bias
      total += np.log1p(np.exp(-s if i == j else s))
  return total / len(rows)


def test_value_and_gradient_are_the_double_loop():
  z, valid = make(), np.arange(B) % 4 != 1
  loss = siglip.Loss(scale=5.0, bias=-2.0)
  params = loss.init(jax.random.key(0))
  f = jax.value_and_grad(lambda p: loss(p, z, {"valid": valid}), has_aux=True)
  (value, metrics), grad = f(params)

  def at(log_scale=LOG5, bias=-2.0):
    return loop(z["image"], z["text"], np.exp(log_scale), bias, valid)

  h = 1e-5
  np.testing.assert_allclose(value, at(), rtol=3e-6)
  slope = (at(log_scale=np.log(5.0) + h) - at(log_scale=np.log(5.0) - h)) / (2 * h)
  np.testing.assert_allclose(grad["log_scale"], slope, rtol=3e-6)
  slope = (at(bias=-2.0 + h) - at(bias=-2.0 - h)) / (2 * h)
  np.testing.assert_allclose(grad["bias"], slope, rtol=3e-6)
  np.testing.assert_allclose(metrics["siglip/image_text"], value)
  np.testing.assert_allclose(metrics["siglip/scale"], 5.0, rtol=1e-6)
  assert metrics["siglip/bias"] == -2.0


def test_starts_where_the_paper_starts():
  params = siglip.Loss().init(jax.random.key(0))
  np.testing.assert_allclose(np.exp(params["log_scale"]), 10.0, rtol=1e-6)
  assert params["bias"] == -10.0


def test_positives_loss_is_the_diagonals_share():
  z = make()
  loss = siglip.Loss()
  _, metrics = loss(loss.init(jax.random.key(0)), z, {})
  s = 10 * np.sum(z["image"] * z["text"], -1) - 10
  np.testing.assert_allclose(
    metrics["siglip/positive_loss_image_text"], np.mean(np.log1p(np.exp(-s))), rtol=1e-5
  )


def test_scale_must_be_positive():
  with pytest.raises(ValueError, match=r"scale = 0\.0 must be above 0"):
    siglip.Loss(scale=0.0)


def test_pair_loss_does_not_overflow():
  s = jnp.asarray([200.0, -200.0], jnp.float32)
  got = siglip.pair_loss(s, jnp.asarray([False, True]))
  np.testing.assert_allclose(got, [200.0, 200.0])
