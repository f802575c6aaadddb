"""Histograms of gradients and colors, against loops over pixels."""

import jax
import jax.numpy as jnp
import numpy as np

from model.layers import descriptors

# One program each: operation by operation, they take seconds to compile.
gradients = jax.jit(descriptors.gradients, static_argnums=(1, 2))
colors = jax.jit(descriptors.colors, static_argnums=(1, 2, 3))


def shared(place, bins, around):
  """The two nearest of `bins` and their shares; `around` for angles."""
  low = int(np.floor(place))
  share = place - low
  if around:
    return [(low % bins, 1 - share), ((low + 1) % bins, share)]
  return [(low, 1 - share), (min(low + 1, bins - 1), share)]


def test_gradients_are_oriented_histograms_per_cell():
  x = np.random.default_rng(0).normal(size=(2, 6, 6, 3))
  got = gradients(jnp.asarray(x, jnp.float32), cells=2, bins=4)
  gray = np.pad(x.mean(axis=-1), ((0, 0), (1, 1), (1, 1)), mode="edge")
  want = np.zeros((2, 4, 4))
  for b, i, j in np.ndindex(2, 6, 6):
    down = (gray[b, i + 2, j + 1] - gray[b, i, j + 1]) / 2
    right = (gray[b, i + 1, j + 2] - gray[b, i + 1, j]) / 2
    place = np.arctan2(down, right) % np.pi / np.pi * 4
    for k, share in shared(place, 4, around=True):
      want[b, i // 3 * 2 + j // 3, k] += share * np.hypot(down, right)
  want *= 2 / np.sqrt(np.sum(want**2, axis=-1, keepdims=True) + 0.1)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_gradients_do_not_see_brightness_and_hardly_contrast():
  x = jax.random.normal(jax.random.key(0), (1, 16, 16, 3))
  plain = gradients(x, 2, 8)
  changed = gradients(0.7 * x + 0.5, 2, 8)
  np.testing.assert_allclose(plain, changed, atol=0.01)
  flat = gradients(jnp.ones((1, 16, 16, 3)), 2, 8)
  np.testing.assert_array_equal(flat, jnp.zeros_like(flat))


def test_colors_are_roots_of_joint_histograms_per_cell():
  x = np.random.default_rng(0).uniform(-1.5, 2.5, size=(2, 4, 4, 2))
  got = colors(jnp.asarray(x, jnp.float32), 2, 3, (-1.0, 2.0))
  want = np.zeros((2, 4, 3, 3))
  place = np.clip((x + 1) / 3, 0, 1) * 2
  for b, i, j in np.ndindex(2, 4, 4):
    for m, one in shared(place[b, i, j, 0], 3, around=False):
      for n, other in shared(place[b, i, j, 1], 3, around=False):
        want[b, i // 2 * 2 + j // 2, m, n] += one * other / 4
  want = np.sqrt(want).reshape(2, 4, 9) * 3
  np.testing.assert_allclose(got, want, atol=1e-5)
  np.testing.assert_allclose(np.mean(np.square(got)), 1.0, atol=1e-5)
