"""Sparsemax against every possible support, and its slope by finite differences."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers import sparsemax

F = jax.jit(sparsemax.sparsemax)
WEIGHT = np.random.default_rng(9).normal(size=5).astype(np.float32)
SLOPE = jax.jit(jax.grad(lambda x: jnp.sum(WEIGHT * sparsemax.sparsemax(x))))


def project(x):
  """The point of the simplex nearest to x: the best of those of every support."""
  best, least = None, np.inf
  for size in range(1, len(x) + 1):
    for support in map(list, itertools.combinations(range(len(x)), size)):
      p = np.zeros(len(x))
      p[support] = x[support] - (x[support].sum() - 1) / size
      distance = np.sum((p - x) ** 2)
      if p.min() >= 0 and distance < least:
        best, least = p, distance
  return best


@pytest.mark.parametrize("spread", [0.05, 0.5, 3.0])
def test_value_and_slope_are_the_projection(spread):
  for x in np.random.default_rng(0).normal(size=(6, 5)) * spread + 20:
    got = F(x.astype(np.float32))
    np.testing.assert_allclose(got, project(x), atol=5e-6)
    np.testing.assert_allclose(np.sum(got), 1, rtol=1e-6)
    h = 1e-6
    ends = [
      [WEIGHT @ project(x + sign * h * np.eye(5)[i]) for i in range(5)]
      for sign in (1, -1)
    ]
    want = np.subtract(*ends) / (2 * h)
    np.testing.assert_allclose(SLOPE(x.astype(np.float32)), want, atol=1e-5)


def test_few_or_all_are_used_and_others_are_exactly_zero():
  x = np.float32([0, 0, 0, 0, 5])
  np.testing.assert_array_equal(F(x), [0, 0, 0, 0, 1])
  np.testing.assert_array_equal(SLOPE(x), np.zeros(5))
  np.testing.assert_allclose(F(np.float32([1e4, 1e4, 1e4, 1e4, 1e4])), 0.2)


def test_rows_are_apart_and_counted():
  x = np.random.default_rng(1).normal(size=(2, 3, 5)).astype(np.float32)
  p = F(x)
  for i, j in np.ndindex(2, 3):
    np.testing.assert_allclose(p[i, j], F(x[i, j]), rtol=1e-6)
  used = np.asarray(p) > 0
  np.testing.assert_array_equal(sparsemax.active(p), used.sum(-1))
  want = (used[0] & used[1]).sum(-1) / (used[0] | used[1]).sum(-1)
  np.testing.assert_allclose(sparsemax.overlap(p[0], p[1]), want, rtol=1e-6)
