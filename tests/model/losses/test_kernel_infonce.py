"""Kernel-InfoNCE against a double loop in f64, and what it is at gamma = 2."""

import jax
import numpy as np
import pytest

from model.losses import infonce, kernel_infonce
from tests import slopes

B, D = 6, 4
VALID = np.arange(B) != 2


def loop(z, gamma, t, valid, within=False):
  """One kernel, both directions, one pair at a time."""
  rows, total = np.flatnonzero(valid), 0.0

  def kernel(x, y):
    return np.exp(-(np.linalg.norm(x - y) ** gamma) / t)

  for a, b in ((z["image"], z["text"]), (z["text"], z["image"])):
    for i in rows:
      terms = [kernel(a[i], b[j]) for j in rows]
      terms += [kernel(a[i], a[j]) for j in rows if within and j != i]
      total -= np.log(kernel(a[i], b[i]) / sum(terms)) / len(rows)
  return total / 2


def halves(z):
  return [{m: x[:, part] for m, x in z.items()} for part in (slice(2), slice(2, None))]


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_value_and_slope_are_the_double_loop(gamma, within):
  loss = kernel_infonce.Loss(gamma=gamma, temperature=0.3, within=within)

  def want(z):
    return loop(z, gamma, 0.3, VALID, within)

  metrics = slopes.assert_is(loss, want, slopes.unit(B, D), {"valid": VALID})
  assert set(metrics) == {
    "kernel_infonce/image_to_text",
    "kernel_infonce/text_to_image",
  }


@pytest.mark.parametrize("mixture", ["sum", "concat"])
def test_mixtures_are_weighted_sums(mixture):
  loss = kernel_infonce.Loss(mixture=mixture, share=0.3, temperature=0.3, gamma=0.5)

  def want(z):
    first, second = halves(z) if mixture == "concat" else (z, z)
    return 0.3 * loop(first, 0.5, 0.3, VALID) + 0.7 * loop(second, 2.0, 0.3, VALID)

  slopes.assert_is(loss, want, slopes.unit(B, D), {"valid": VALID})


def test_gamma_two_is_infonce_of_half_the_temperature():
  z = slopes.unit(B, D)
  got, _ = jax.jit(kernel_infonce.Loss(gamma=2.0, temperature=0.2))({}, z, {})
  want, _ = jax.jit(infonce.Loss(temperature=0.1, learned=False))({}, z, {})
  np.testing.assert_allclose(got, want, rtol=3e-6)


def test_kernels_that_vanish_in_float32_are_compared_all_the_same():
  """exp(-||a - b||^2 / 0.01) of vectors at right angles is exp(-200)."""
  eye = np.eye(D)
  z = {"image": eye, "text": eye[::-1]}
  loss = kernel_infonce.Loss(gamma=2.0, temperature=0.01)
  value, _ = jax.jit(loss)({}, jax.tree.map(np.float32, z), {})
  np.testing.assert_allclose(value, loop(z, 2.0, 0.01, np.ones(D, bool)), rtol=3e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0])
def test_equal_vectors_have_a_finite_slope(gamma):
  z = slopes.unit(B, D)
  z["text"] = z["image"]
  z = {m: np.concatenate([x, x[:1]]) for m, x in z.items()}  # and a duplicate row
  loss = kernel_infonce.Loss(gamma=gamma, within=True)
  value, grad = jax.jit(jax.value_and_grad(lambda z: loss({}, z, {})[0]))(z)
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in grad.values())


@pytest.mark.parametrize("valid", [np.zeros(B, bool), np.arange(B) == 1])
def test_nothing_to_compare_with_is_zero(valid):
  loss = kernel_infonce.Loss()
  f = jax.jit(jax.value_and_grad(lambda z: loss({}, z, {"valid": valid})[0]))
  value, grad = f(slopes.unit(B, D))
  np.testing.assert_allclose(value, 0, atol=1e-5)
  assert all(np.isfinite(g).all() for g in grad.values())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(gamma=0.0), "gamma = 0.0 and temperature = 0.1 must be above 0"),
    (dict(share=1.5), r"share = 1.5 must be in \[0, 1\]"),
    (dict(mixture="product"), "mixture = 'product' must be one of"),
    (dict(pairs=()), "must be pairs"),
  ],
)
def test_options_that_make_no_sense(options, message):
  with pytest.raises(ValueError, match=message):
    kernel_infonce.Loss(**options)
