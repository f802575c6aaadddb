import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers.wide import Ngrams, Thumbnail
from tests.model.layers.filled import filled


def test_a_thumbnail_is_a_linear_map_of_the_averaged_input():
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  wide = Thumbnail(5, (2, 2))
  params = filled(wide, x)
  kernel = params["params"]["kernel"]
  assert kernel.shape == (2 * 2 * 3, 5)
  small = np.asarray(x).reshape(2, 2, 4, 2, 4, 3).mean(axis=(2, 4)).reshape(2, 12)
  np.testing.assert_allclose(wide.apply(params, x), small @ kernel, atol=1e-5)
  with pytest.raises(ValueError, match=r"8 % 3 = 2"):
    Thumbnail(5, (3, 3)).init(jax.random.key(0), x)


def test_padded_frames_reach_no_thumbnail():
  x = jax.random.normal(jax.random.key(0), (2, 8, 4))
  mask = jnp.asarray(np.arange(8) < np.array([[8], [3]]))
  wide = Thumbnail(5, (4, 2))
  params = filled(wide, x)
  spoilt = jnp.where(mask[:, :, None], x, jnp.nan)
  np.testing.assert_array_equal(
    wide.apply(params, spoilt, mask), wide.apply(params, x, mask)
  )


def test_ngrams_are_summed_over_the_root_of_their_number():
  x = jnp.array([[2, 9, 9, 0], [0, 0, 0, 0]], jnp.int32)
  wide = Ngrams(5, rows=12)
  assert not wide.init(jax.random.key(0), x)["params"]["embedding"].any()
  params = filled(wide, x)
  table = params["params"]["embedding"]
  y = wide.apply(params, x)
  np.testing.assert_allclose(y[0], (table[2] + 2 * table[9]) / np.sqrt(3), atol=1e-5)
  np.testing.assert_array_equal(y[1], jnp.zeros(5))


@pytest.mark.parametrize(
  "wide, x",
  [
    (Thumbnail(5, (4, 4), drop=0.5), jnp.ones((2, 8, 8, 3))),
    (Ngrams(5, rows=12, drop=0.5), jnp.full((2, 16), 3, jnp.int32)),
  ],
  ids=["thumbnail", "ngrams"],
)
def test_training_alone_leaves_parts_out(wide, x):
  params = filled(wide, x)
  whole = wide.apply(params, x)
  one, other = (
    wide.apply(params, x, train=True, rngs={"dropout": jax.random.key(i)})
    for i in (1, 2)
  )
  assert (one != whole).any() and (one != other).any()
