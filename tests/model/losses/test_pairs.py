import jax
import jax.numpy as jnp
import numpy as np

from model.losses import pairs


def test_directions_go_both_ways():
  got = list(pairs.directions((("image", "text"), ("audio", "text"))))
  assert got == [
    ("image", "text"),
    ("text", "image"),
    ("audio", "text"),
    ("text", "audio"),
  ]


def test_masked_mean_ignores_what_is_masked():
  x = jnp.asarray([1.0, jnp.inf, 3.0], jnp.float32)
  valid = jnp.asarray([True, False, True])
  value, grad = jax.value_and_grad(pairs.masked_mean)(x, valid)
  assert value == 2.0
  np.testing.assert_array_equal(grad, [0.5, 0.0, 0.5])
  assert pairs.masked_mean(x, jnp.zeros(3, bool)) == 0.0


def test_valid_defaults_to_every_row():
  assert pairs.valid_rows({}, 3).tolist() == [True] * 3
  assert pairs.valid_rows({"valid": jnp.asarray([1, 0])}, 2).tolist() == [True, False]


def test_positive_is_in_float32():
  a = jnp.full((2, 3), 0.1, jnp.bfloat16)
  got = pairs.positive(a, a)
  assert got.dtype == jnp.float32 and got.shape == (2,)
