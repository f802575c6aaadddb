"""Decoupled uniformity against its sums in f64, with and without a prior."""

import jax
import numpy as np
import pytest

from model.losses import decoupled_uniformity
from tests import slopes

B, D, T = 6, 4, 1.5
VALID = np.arange(B) != 2
VIEWS = ("image", "text", "audio")
PRIOR = np.random.default_rng(5).normal(size=(B, 3)).astype(np.float32)


def loop(z, weights=None):
  """One pair at a time, over valid rows only."""
  m = (sum(z.values()) / len(z))[VALID]
  m = m if weights is None else weights @ m
  terms = [
    np.exp(-T * np.sum((m[i] - m[j]) ** 2)) for i in range(len(m)) for j in range(i)
  ]
  return np.log(np.mean(terms))


def weights_of(kernel, ridge):
  p = PRIOR[VALID].astype(np.float64)
  if kernel == "cosine":
    p /= np.linalg.norm(p, axis=-1, keepdims=True)
    k = p @ p.T
  else:
    k = np.exp(-np.sum((p[:, None] - p) ** 2, -1) / (2 * 1.3**2))
  return np.linalg.solve(k + (ridge or len(p) ** -0.5) * np.eye(len(p)), k)


def run(loss, z, batch):
  f = jax.jit(jax.value_and_grad(lambda z, batch: loss({}, z, batch)[0]))
  return jax.device_get(f(z, batch))


@pytest.mark.parametrize("views", [VIEWS[:1], VIEWS[:2], VIEWS])
def test_value_and_slope_are_the_double_loop(views):
  z = slopes.unit(B, D, views)
  loss = decoupled_uniformity.Loss(modalities=views, t=T)
  metrics = slopes.assert_is(loss, loop, z, {"valid": VALID})
  m = (sum(z.values()) / len(z))[VALID]
  np.testing.assert_allclose(
    metrics["decoupled_uniformity/centroid_square"],
    np.mean(np.sum(m * m, -1)),
    rtol=1e-6,
  )


@pytest.mark.parametrize(
  ("kernel", "ridge"), [("rbf", 0.1), ("rbf", 0), ("cosine", 0.5)]
)
def test_a_prior_averages_the_centroids(kernel, ridge):
  loss = decoupled_uniformity.Loss(
    t=T, prior="prior", kernel=kernel, width=1.3, ridge=ridge
  )
  batch = {"valid": VALID, "prior": np.where(VALID[:, None], PRIOR, 1e6)}
  batch["prior"] = batch["prior"].astype(np.float32)
  weights = weights_of(kernel, ridge)
  slopes.assert_is(
    loss, lambda z: loop(z, weights), slopes.unit(B, D), batch, rtol=1e-5
  )


@pytest.mark.parametrize("kernel", decoupled_uniformity.KERNELS)
def test_rows_of_no_prior_are_left_out(kernel):
  z, unknown = slopes.unit(B, D), np.isin(np.arange(B), (0, 4))
  loss = decoupled_uniformity.Loss(prior="prior", kernel=kernel)
  prior = np.where(unknown[:, None], np.float32(0), PRIOR)
  value, grad = run(loss, z, {"prior": prior, "valid": VALID})
  want, slope = run(loss, z, {"prior": PRIOR, "valid": VALID & ~unknown})
  np.testing.assert_allclose(value, want, rtol=1e-6)
  for m in z:
    np.testing.assert_allclose(grad[m], slope[m], rtol=1e-5, atol=1e-7)
    assert np.all(grad[m][unknown] == 0) and np.any(grad[m] != 0)


def test_a_prior_that_tells_every_row_apart_changes_nothing():
  z, batch = slopes.unit(B, D), {"prior": 10 * np.eye(B, dtype=np.float32)}
  got, _ = run(decoupled_uniformity.Loss(prior="prior", ridge=1e-7), z, batch)
  want, _ = run(decoupled_uniformity.Loss(), z, {})
  np.testing.assert_allclose(got, want, rtol=3e-6)


def test_the_slope_by_a_centroid_is_that_of_the_paper():
  """-4t sum_j w_ij (m_i - m_j): each unordered pair is met from both its ends."""
  z = slopes.unit(B, D, ("image",))
  _, grad = run(decoupled_uniformity.Loss(modalities=("image",), t=T), z, {})
  m = z["image"].astype(np.float64)
  k = np.exp(-T * np.sum((m[:, None] - m) ** 2, -1)) * (1 - np.eye(B))
  w = k / k.sum()
  want = -4 * T * (w.sum(1)[:, None] * m - w @ m)
  np.testing.assert_allclose(grad["image"], want, rtol=0, atol=1e-6)


def test_views_that_agree_can_be_spread_further():
  z = slopes.unit(B, D)
  agree = {m: z["image"] for m in z}
  assert run(decoupled_uniformity.Loss(), agree, {})[0] < 0
  opposed = {"image": z["image"], "text": -z["image"]}
  np.testing.assert_allclose(run(decoupled_uniformity.Loss(), opposed, {})[0], 0)


@pytest.mark.parametrize("prior", [None, "prior"])
@pytest.mark.parametrize("valid", [np.zeros(B, bool), np.arange(B) == 1])
def test_without_a_pair_it_is_zero(valid, prior):
  loss = decoupled_uniformity.Loss(prior=prior)
  value, grad = run(loss, slopes.unit(B, D), {"valid": valid, "prior": PRIOR})
  assert value == 0 and all(np.all(g == 0) for g in grad.values())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (
      dict(modalities="image"),
      "modalities = 'image' must be a tuple of modality names",
    ),
    (dict(kernel="linear"), "kernel = 'linear' must be one of"),
    (dict(width=0.0), "width = 0.0 must be above 0"),
  ],
)
def test_options_that_make_no_sense(options, message):
  with pytest.raises(ValueError, match=message):
    decoupled_uniformity.Loss(**options)


def test_a_missing_prior_is_named():
  loss = decoupled_uniformity.Loss(prior="latent")
  with pytest.raises(ValueError, match=r"no 'latent' .*, only \['valid'\]"):
    loss({}, slopes.unit(B, D), {"valid": VALID})
