"""CACR against a double loop in f64, and whom it pulls and pushes hardest."""

import jax
import numpy as np
import pytest

from model.losses import cacr
from tests import slopes

B, D = 6, 4
VALID = np.arange(B) != 2
VIEWS = ("image", "text", "audio")


def mean(d, sharpness):
  """The mean of d under weights exp(sharpness * d)."""
  d = np.asarray(d)
  w = np.exp(sharpness * d)
  return float(np.sum(w * d) / np.sum(w))


def loop(z, valid, alpha=1.0, beta=1.0, pull=1.0, push=0.9, debias=0.0):
  rows, views, n = np.flatnonzero(valid), list(z), len(z)
  pulled = pushed = 0.0
  for q in views:
    for i in rows:
      others = [np.sum((z[q][i] - z[k][i]) ** 2) for k in views if k != q]
      pulled += mean(others, pull) / (n * len(rows))
      for k in views:
        if k == q:
          continue
        d = [np.sum((z[q][i] - z[k][j]) ** 2) for j in rows if j != i]
        own = np.sum((z[q][i] - z[k][i]) ** 2)
        far = (mean(d, -push) - debias * own) / (1 - debias)
        pushed += far / (n * (n - 1) * len(rows))
  return alpha * pulled - beta * pushed


def run(loss, z, batch):
  f = jax.jit(jax.value_and_grad(lambda z, batch: loss({}, z, batch), has_aux=True))
  return jax.device_get(f(z, batch))


@pytest.mark.parametrize(
  ("views", "options"),
  [
    (VIEWS[:2], {}),
    (VIEWS, dict(alpha=0.5, beta=2.0, pull=3.0, push=2.0)),
    (VIEWS, dict(pull=0.0, push=0.0)),
    (VIEWS[:2], dict(debias=0.1)),
  ],
)
def test_value_and_slope_are_the_double_loop(views, options):
  loss = cacr.Loss(modalities=views, **options)
  z = slopes.unit(B, D, views)
  slopes.assert_is(loss, lambda z: loop(z, VALID, **options), z, {"valid": VALID})


def test_the_farther_positive_is_pulled_harder():
  """A query at the pole, one view at 0.2 from it and one at 1."""

  def at(apart):
    x = 1 - apart**2 / 2
    return np.array([[x, np.sqrt(1 - x * x)]], np.float32)

  z = {"image": at(0.0), "text": at(0.2), "audio": at(1.0)}

  def slope(pull):
    _, grad = run(cacr.Loss(modalities=VIEWS, pull=pull, beta=0.0), z, {})
    return [np.linalg.norm(grad[m]) for m in ("text", "audio")]

  near, far = slope(1.0)
  even = slope(0.0)
  assert far / near > even[1] / even[0]


def test_the_nearer_negative_is_pushed_harder():
  turn = np.array([0.0, 0.5, 1.5])
  z = {"text": np.stack([np.cos(turn), np.sin(turn)], -1).astype(np.float32)}
  z["image"] = np.repeat(z["text"][:1], 3, axis=0)

  def ratio(push):
    _, grad = run(cacr.Loss(alpha=0.0, push=push), z, {})
    return np.linalg.norm(grad["text"][1]) / np.linalg.norm(grad["text"][2])

  assert ratio(0.5) > 1.2 * ratio(0.0)


def test_debiasing_pulls_positives_and_not_apart():
  """Correcting for positives among the negatives takes their push off."""
  z = slopes.unit(B, D)
  apart = {**z, "text": -z["image"]}
  plain, corrected = (
    run(cacr.Loss(alpha=0.0, debias=d), apart, {})[0][0] for d in (0.0, 0.1)
  )
  # Positives are the farthest of all: without them, the rest is nearer.
  assert corrected > plain


def test_sharp_weights_do_not_vanish():
  """exp(-60 * 4) is 0 in f32."""
  z = {"image": np.eye(4, dtype=np.float32), "text": -np.eye(4, dtype=np.float32)}
  (value, _), grad = run(cacr.Loss(push=60.0), z, {})
  want = loop(
    {m: x.astype(np.float64) for m, x in z.items()}, np.ones(4, bool), push=60.0
  )
  np.testing.assert_allclose(value, want, rtol=3e-6)
  assert all(np.isfinite(g).all() for g in grad.values())


@pytest.mark.parametrize("valid", [np.zeros(B, bool), np.arange(B) == 1])
def test_without_negatives_only_attraction_is_left(valid):
  z = slopes.unit(B, D)
  (value, metrics), grad = run(cacr.Loss(), z, {"valid": valid})
  apart = np.sum((z["image"] - z["text"])[valid] ** 2)
  np.testing.assert_allclose(value, apart, rtol=1e-6)
  assert metrics["cacr/repulsion"] == 0
  assert all(np.isfinite(g).all() and np.all(g[~valid] == 0) for g in grad.values())


def test_equal_rows_are_finite():
  z = slopes.unit(B, D)
  z = {m: np.concatenate([z["image"], z["image"]]) for m in z}
  (value, _), grad = run(cacr.Loss(), z, {})
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in grad.values())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(modalities=("image",)), "must be a tuple of at least two names"),
    (dict(debias=1.0), r"debias = 1.0 must be in \[0, 1\)"),
  ],
)
def test_options_that_make_no_sense(options, message):
  with pytest.raises(ValueError, match=message):
    cacr.Loss(**options)
