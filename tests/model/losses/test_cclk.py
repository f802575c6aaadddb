"""CCLK against a double loop in f64, and what its weights are for plain conditions."""

import dataclasses

import jax
import numpy as np
import pytest

from model.losses import cclk
from tests import slopes

B, D, T = 6, 4, 0.4
VALID = np.arange(B) != 2
CONDITION = np.random.default_rng(7).normal(size=(B, 3)).astype(np.float32)
GROUPS = np.eye(3, dtype=np.float32)[[0, 0, 1, 1, 1, 2]]


def weights_of(c, kernel="rbf", ridge=1.0, clip=1e-6):
  """Of valid rows only, in f64."""
  c = np.asarray(c, np.float64)
  if kernel == "cosine":
    c = c / np.linalg.norm(c, axis=-1, keepdims=True)
    k = c @ c.T
  else:
    k = np.exp(-np.sum((c[:, None] - c) ** 2, -1))
  w = np.linalg.inv(k + ridge * np.eye(len(c))) @ k
  return np.where(w < clip, 0.0, w)


def loop(z, mode, weights):
  """Both sides, one pair at a time, over valid rows; weights of each side."""
  total = 0.0
  for (x, y), w in zip((("image", "text"), ("text", "image")), weights):
    x, y = z[x][VALID], z[y][VALID]
    n = len(x)
    for i in range(n):
      own = np.exp(x[i] @ y[i] / T)
      across = [np.exp(x[i] @ y[j] / T) for j in range(n)]
      within = [np.exp(x[i] @ x[j] / T) * (j != i) for j in range(n)]
      if mode == "negatives":
        negative = sum(w[j, i] * (across[j] + within[j]) for j in range(n) if j != i)
        total -= np.log(own / (own + (n - 1) * negative))
      else:
        p = sum(w[j, i] * (across[j] + within[j]) for j in range(n))
        total -= np.log(p / (p + sum(across) + sum(within)))
  return total / (2 * len(x))


def run(loss, z, batch):
  f = jax.jit(jax.value_and_grad(lambda z, batch: loss({}, z, batch), has_aux=True))
  return jax.device_get(f(z, batch))


@pytest.mark.parametrize("mode", cclk.MODES)
@pytest.mark.parametrize("kernel", cclk.KERNELS)
def test_value_and_slope_are_the_double_loop(kernel, mode):
  loss = cclk.Loss(condition="c", mode=mode, kernel=kernel, temperature=T)
  c = np.where(VALID[:, None], CONDITION, np.float32(1e3))
  w = weights_of(CONDITION[VALID], kernel)
  assert (w == 0).any() and (w > 0).any()  # some would be negative
  slopes.assert_is(
    loss, lambda z: loop(z, mode, (w, w)), slopes.unit(B, D), {"valid": VALID, "c": c}
  )


@pytest.mark.parametrize("mode", cclk.MODES)
def test_own_embeddings_condition_without_a_slope(mode):
  z = slopes.unit(B, D)
  w = [weights_of(z[m][VALID]) for m in ("image", "text")]
  loss = cclk.Loss(mode=mode, temperature=T)
  slopes.assert_is(loss, lambda z: loop(z, mode, w), z, {"valid": VALID}, rtol=1e-5)


def test_classes_are_averaged_over_their_members():
  """With a one-hot condition and hardly any ridge: exact conditional sampling."""
  loss = cclk.Loss(kernel="cosine", ridge=1e-3)
  w = jax.jit(loss.weights)(GROUPS, np.ones(B, bool))
  same = GROUPS @ GROUPS.T
  np.testing.assert_allclose(w, same / same.sum(0), atol=2e-3)


def test_equal_conditions_are_the_plain_mean_of_negatives():
  loss = cclk.Loss(condition="c", ridge=1e-2)
  w = jax.jit(loss.weights)(np.ones((B, 2), np.float32), np.ones(B, bool))
  np.testing.assert_allclose(w, np.full((B, B), 1 / (B + 1e-2)), rtol=2e-3)


def test_conditions_that_differ_in_all_have_no_negatives():
  z, c = slopes.unit(B, D), 100 * np.eye(B, dtype=np.float32)
  (value, _), grad = run(cclk.Loss(condition="c"), z, {"c": c})
  assert value == 0 and all(np.all(g == 0) for g in grad.values())


@pytest.mark.parametrize("mode", cclk.MODES)
@pytest.mark.parametrize("kernel", cclk.KERNELS)
def test_rows_of_no_condition_are_left_out(kernel, mode):
  z, unknown = slopes.unit(B, D), np.isin(np.arange(B), (0, 5))
  loss = cclk.Loss(condition="c", mode=mode, kernel=kernel, temperature=T)
  c = np.where(unknown[:, None], np.float32(0), GROUPS)
  (value, _), grad = run(loss, z, {"c": c, "valid": VALID})
  (want, _), slope = run(loss, z, {"c": GROUPS, "valid": VALID & ~unknown})
  np.testing.assert_allclose(value, want, rtol=1e-6)
  for m in z:
    np.testing.assert_allclose(grad[m], slope[m], rtol=1e-5, atol=1e-7)
    assert np.all(grad[m][unknown] == 0) and np.any(grad[m] != 0)


def test_a_number_may_be_zero():
  z, c = slopes.unit(B, D), np.arange(B, dtype=np.float32)[:, None] / 4
  (value, _), grad = run(cclk.Loss(condition="c"), z, {"c": c})
  (want, _), _ = run(cclk.Loss(condition="c"), z, {"c": c + 1})
  np.testing.assert_allclose(value, want, rtol=1e-5)
  assert np.any(grad["image"][0] != 0)


def test_weights_are_never_negative():
  c = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
  loss = cclk.Loss(kernel="cosine", ridge=0.1)
  assert np.all(jax.jit(loss.weights)(c, np.ones(20, bool)) >= 0)
  loss = dataclasses.replace(loss, clip=-10.0)
  assert jax.jit(loss.weights)(c, np.ones(20, bool)).min() < -0.01


def test_large_scores_do_not_overflow():
  (value, _), grad = run(cclk.Loss(temperature=0.005), slopes.unit(B, D), {})
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in grad.values())


@pytest.mark.parametrize("mode", cclk.MODES)
@pytest.mark.parametrize("valid", [np.zeros(B, bool), np.arange(B) == 1])
def test_one_row_is_finite(valid, mode):
  (value, _), grad = run(cclk.Loss(mode=mode), slopes.unit(B, D), {"valid": valid})
  # A row alone has P = W k = k / 2 beside k: -log(1/3).
  want = np.log(3) if mode == "positives" and valid.any() else 0.0
  np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-7)
  assert all(np.isfinite(g).all() and np.all(g[~valid] == 0) for g in grad.values())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(mode="both"), "mode = 'both' must be one of"),
    (dict(kernel="linear"), "kernel = 'linear' must be one of"),
    (dict(ridge=0.0), r"ridge = 0\.0 must be above 0"),
  ],
)
def test_options_that_make_no_sense(options, message):
  with pytest.raises(ValueError, match=message):
    cclk.Loss(**options)


def test_a_missing_condition_is_named():
  with pytest.raises(ValueError, match=r"no 'hue' .*, only \['valid'\]"):
    cclk.Loss(condition="hue")({}, slopes.unit(B, D), {"valid": VALID})
