import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers import descriptors
from model.layers.wide import Descriptors, Ngrams
from tests.model.layers.filled import filled

gradients = jax.jit(descriptors.gradients, static_argnums=(1, 2))
colors = jax.jit(descriptors.colors, static_argnums=(1, 2, 3))


def test_descriptors_enter_by_a_linear_map_each():
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  wide = Descriptors(5, gradients=(2, 4), colors=(4, 2), color_range=(-1.0, 2.0))
  params = filled(wide, x)
  kernels = params["params"]
  assert kernels["gradients"].shape == (2 * 2 * 4, 5)
  assert kernels["colors"].shape == (4 * 4 * 2**3, 5)
  want = (
    gradients(x, 2, 4).reshape(2, -1) @ kernels["gradients"]
    + colors(x, 4, 2, (-1.0, 2.0)).reshape(2, -1) @ kernels["colors"]
  )
  np.testing.assert_allclose(jax.jit(wide.apply)(params, x), want, atol=1e-5)


def test_an_input_without_edges_has_a_finite_gradient():
  wide = Descriptors(5, gradients=(2, 4), colors=(2, 2))
  x = jnp.ones((1, 8, 8, 3))
  params = filled(wide, x)
  slope = jax.jit(jax.grad(lambda x: wide.apply(params, x).sum()))(x)
  np.testing.assert_array_equal(slope, jnp.zeros_like(x))


def test_cells_that_do_not_divide_the_image_are_refused():
  x = jnp.ones((2, 8, 8, 3))
  with pytest.raises(ValueError, match=r"image\.gradients = \(3, 4\) \(8 % 3 = 2"):
    Descriptors(5, gradients=(3, 4)).init(jax.random.key(0), x)


def test_padded_frames_reach_no_descriptor():
  x = jax.random.normal(jax.random.key(0), (2, 8, 4))
  mask = jnp.asarray(np.arange(8) < np.array([[8], [3]]))
  wide = Descriptors(5, gradients=(2, 4), colors=(2, 3))
  params = filled(wide, x)
  spoilt = jnp.where(mask[:, :, None], x, jnp.nan)
  apply = jax.jit(wide.apply)
  np.testing.assert_array_equal(apply(params, spoilt, mask), apply(params, x, mask))


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
    (Descriptors(5, colors=(4, 2), drop=0.5), jnp.ones((2, 8, 8, 3))),
    (Ngrams(5, rows=12, drop=0.5), jnp.full((2, 16), 3, jnp.int32)),
  ],
  ids=["descriptors", "ngrams"],
)
def test_training_alone_leaves_parts_out(wide, x):
  params = filled(wide, x)
  apply = jax.jit(wide.apply, static_argnames="train")
  whole = apply(params, x)
  one, other = (
    apply(params, x, train=True, rngs={"dropout": jax.random.key(i)}) for i in (1, 2)
  )
  assert (one != whole).any() and (one != other).any()
