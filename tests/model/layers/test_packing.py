"""Examples that keep a row of their own, their real tokens first."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers import packing

B, N = 6, 7


@pytest.fixture(scope="module")
def mask():
  mask = np.random.default_rng(0).random((B, N)) < 0.5
  mask[0], mask[1] = True, False
  assert (mask[2:, :-1] < mask[2:, 1:]).any()  # holes
  return mask


@pytest.mark.parametrize("multiple, tokens", [(1, 7), (2, 8), (4, 8), (7, 7)])
def test_real_tokens_come_first_in_their_order(mask, multiple, tokens):
  x = np.random.default_rng(1).standard_normal((B, N, 3)).astype(np.float32)
  places = packing.alone(jnp.asarray(mask), np.shape(mask), multiple)
  y, real = places.enter(jnp.asarray(x)), places.real
  assert y.shape == (B, tokens, 3) and real.shape == (B, tokens)
  for i, own in enumerate(mask):
    n = own.sum()
    np.testing.assert_array_equal(y[i, :n], x[i, own])
    np.testing.assert_array_equal(y[i, n:], 0)
    np.testing.assert_array_equal(real[i], np.arange(tokens) < n)
    owner = places.of_example(jnp.arange(B))[i]
    np.testing.assert_array_equal(owner, i)
  np.testing.assert_array_equal(places.leave(y), np.where(mask[..., None], x, 0))
  lengths = places.lengths()
  np.testing.assert_array_equal(lengths, np.maximum(mask.sum(axis=1), 1))
  assert lengths.dtype == jnp.int32 and lengths.min() == 1 and lengths.max() == N


def test_gradients_go_to_the_tokens_that_are_real(mask):
  places = packing.alone(jnp.asarray(mask), np.shape(mask), 2)
  weights = jnp.arange(1.0, 9)[None, :, None]  # of each slot
  x = jnp.ones((B, N, 1))
  slopes = jax.grad(lambda x: jnp.sum(places.enter(x) * weights))(x)
  np.testing.assert_array_equal(slopes[..., 0], np.cumsum(mask, axis=1) * mask)
