import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers import stochastic
from model.layers.norm import Norm


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_norm_in_f32_whatever_the_dtype(kind):
  # A large mean: the difference of mean squares would lose every digit.
  x = 300 + np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
  norm = Norm(kind)
  params = norm.init(jax.random.key(0), x)  # ones and zeros
  y = x.astype(np.float64) - (x.mean(-1, keepdims=True) if kind == "layernorm" else 0)
  want = y / np.sqrt(np.square(y).mean(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(norm.apply(params, x), want, atol=1e-3)
  x16 = jnp.asarray(x, jnp.bfloat16)
  got = Norm(kind, dtype=jnp.bfloat16).apply(params, x16)
  assert got.dtype == jnp.bfloat16
  exact = norm.apply(params, x16.astype(jnp.float32))
  np.testing.assert_array_equal(got, exact.astype(jnp.bfloat16))
  assert set(params["params"]) == (
    {"scale", "bias"} if kind == "layernorm" else {"scale"}
  )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("shape", [(6, 64), (2, 3, 64)])
def test_gradients_by_formula_are_the_derived_ones(shape, dtype):
  rng = np.random.default_rng(0)
  x = 0.5 + rng.standard_normal((6, 64))
  x[1], x[2] = 0.5, 0  # rows of constants
  x, d = (jnp.asarray(a.reshape(shape), dtype) for a in (x, rng.standard_normal(shape)))
  scale, bias = rng.standard_normal((2, 64))
  params = {"scale": jnp.float32(1 + 0.3 * scale), "bias": jnp.float32(bias)}

  def run(by_formula):
    norm = Norm(dtype=dtype, by_formula=by_formula)
    y, pull = jax.vjp(lambda p, x: norm.apply({"params": p}, x), params, x)
    return y, *pull(d)

  (got, slopes, by_x), (want, derived, x_derived) = run(True), run(False)
  np.testing.assert_array_equal(got, want)
  assert by_x.dtype == x_derived.dtype == got.dtype == dtype
  for name, slope in slopes.items():
    assert slope.dtype == jnp.float32
    np.testing.assert_allclose(slope, derived[name], rtol=1e-5, atol=1e-5)
  a, b = (np.asarray(g, np.float32).reshape(6, 64) for g in (by_x, x_derived))
  size = np.abs(b).max(axis=1, keepdims=True)
  tolerance = 1e-5 if dtype == jnp.float32 else float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(a / size, b / size, rtol=0, atol=tolerance)


@pytest.mark.parametrize("mean", [0.1, 300.0])
def test_gradients_by_formula_keep_their_digits_whatever_the_mean(mean):
  rng = np.random.default_rng(0)
  x = (mean + rng.standard_normal((4, 64)) * [[1], [0.1], [0.01], [0]]).astype("f4")
  d = rng.standard_normal((4, 64)).astype("f4")
  norm = Norm(by_formula=True)
  params = norm.init(jax.random.key(0), x)  # ones and zeros
  _, pull = jax.vjp(norm.apply, params, x)
  slopes, by_x = pull(jnp.asarray(d))
  y = x.astype(np.float64) - x.mean(-1, keepdims=True, dtype=np.float64)
  inverse = 1 / np.sqrt(np.square(y).mean(-1, keepdims=True) + 1e-6)
  y = y * inverse
  along = (d * y).mean(-1, keepdims=True)
  want = inverse * (d - d.mean(-1, keepdims=True, dtype=np.float64) - y * along)
  np.testing.assert_allclose(by_x / inverse, want / inverse, rtol=0, atol=1e-5)
  scale = slopes["params"]["scale"]
  np.testing.assert_allclose(scale, (d * y).sum(0), rtol=1e-5, atol=1e-5)


def test_unknown_norm():
  with pytest.raises(ValueError, match="batchnorm"):
    Norm("batchnorm").init(jax.random.key(0), jnp.ones((2, 4)))


@pytest.mark.parametrize("traced", [False, True])
def test_dropout_zeroes_its_share_and_keeps_the_mean(traced):
  x = jnp.ones((100, 400))
  rate = jnp.float32(0.3) if traced else 0.3
  y = np.asarray(stochastic.dropout(x, rate, jax.random.key(0)))
  assert abs((y == 0).mean() - 0.3) < 0.01
  np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-4)


def test_drop_path_drops_whole_examples_from_one_key():
  x = jnp.ones((1000, 2, 3))
  y = np.asarray(stochastic.drop_path(x, 0.25, jax.random.key(0)))
  assert np.all((y == 0).all(axis=(1, 2)) | (y != 0).all(axis=(1, 2)))
  assert abs((y == 0).mean() - 0.25) < 0.05
  np.testing.assert_allclose(y.max(), 1 / 0.75, rtol=1e-4)


def test_rates_of_zero_and_one():
  x = jnp.ones((2, 3), jnp.bfloat16)
  assert stochastic.dropout(x, 0.0, None) is x
  traced = stochastic.dropout(x, jnp.float32(0), jax.random.key(0))
  np.testing.assert_array_equal(traced, x)
  assert traced.dtype == jnp.bfloat16
  with pytest.raises(ValueError, match=r"rate of 1\.0"):
    stochastic.drop_path(x, 1.0, jax.random.key(0))
