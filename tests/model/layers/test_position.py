import jax.numpy as jnp
import numpy as np
import pytest

from model.layers import position


def test_sincos_2d_is_sin_and_cos_of_columns_then_rows():
  table = position.sincos_2d((2, 3), 8).reshape(2, 3, 8)
  # Two waves per part: periods 2 pi and 2 pi * 10000.
  for row, column in np.ndindex(2, 3):
    x, y = np.array([1.0, 1e-4]) * column, np.array([1.0, 1e-4]) * row
    want = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)])
    np.testing.assert_allclose(table[row, column], want, atol=1e-6)


def test_sincos_1d_tells_positions_apart():
  table = position.sincos((50,), 16)
  assert table.shape == (50, 16) and table.dtype == np.float32
  np.testing.assert_allclose(table[0], [0] * 8 + [1] * 8)
  gram = table @ table.T
  assert np.all(np.argmax(gram, axis=1) == np.arange(50))


@pytest.mark.parametrize("method", position.METHODS)
def test_resize_keeps_what_must_be_kept(method):
  table = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)), jnp.float32)
  same = position.resize_positions(table, (2, 3), (2, 3), method)
  np.testing.assert_array_equal(same, table)
  constant = position.resize_positions(jnp.ones((6, 4)), (2, 3), (5, 7), method)
  assert constant.shape == (35, 4)
  np.testing.assert_allclose(constant, 1, atol=1e-6)


def test_resize_bilinear_is_half_pixel_and_row_by_row():
  rows = jnp.repeat(jnp.arange(4.0), 2)[:, None]  # the row index, grid 4 x 2
  big = position.resize_positions(rows, (4, 2), (8, 2)).reshape(8, 2)
  want = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
  np.testing.assert_allclose(big, np.stack([want, want], 1), atol=1e-6)


def test_resize_to_a_smaller_grid_averages():
  # Antialiased: the weights 3, 3, 1 of a triangle of twice the width.
  small = position.resize_positions(jnp.arange(4.0)[:, None], (4,), (2,))
  np.testing.assert_allclose(small, [[5 / 7], [16 / 7]], atol=1e-5)


def test_resize_keeps_the_dtype():
  small = jnp.ones((4, 2), jnp.bfloat16)
  assert position.resize_positions(small, (2, 2), (3, 3)).dtype == jnp.bfloat16


def test_errors():
  with pytest.raises(ValueError, match=r"6 tokens cannot be resized from .*\(2, 2\)"):
    position.resize_positions(jnp.ones((6, 4)), (2, 2), (3, 3))
  with pytest.raises(ValueError, match="nearest"):
    position.resize_positions(jnp.ones((4, 4)), (2, 2), (3, 3), "nearest")
  with pytest.raises(ValueError, match=r"divisible by 4, got 6"):
    position.sincos_2d((2, 2), 6)
  with pytest.raises(ValueError, match="even width, got 5"):
    position.sincos_1d(3, 5)
