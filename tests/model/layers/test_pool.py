import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers.pool import POOLS, Pool
from tests.model.layers.filled import filled

MASK = jnp.asarray([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)


def tokens(seed=0):
  return jax.random.normal(jax.random.key(seed), (3, 4, 8))


def pooled(pool, params, x, mask):
  return pool.apply(params, *pool.apply(params, x, mask, method="prepend"))


def init(kind, **options):
  pool = Pool(kind, 8, heads=2, hidden=16, **options)
  return pool, filled(pool, tokens(), MASK)


def test_mean_and_last_are_over_real_tokens():
  x = np.asarray(tokens())
  pool, params = init("mean")
  y = pool.apply(params, x, MASK)
  np.testing.assert_allclose(y[0], x[0, :2].mean(0), atol=1e-6)
  np.testing.assert_allclose(y[1], x[1].mean(0), atol=1e-6)
  np.testing.assert_allclose(pool.apply(params, x, None), x.mean(1), atol=1e-6)
  pool, params = init("last")
  y = pool.apply(params, x, MASK)
  np.testing.assert_array_equal(y[:2], [x[0, 1], x[1, 3]])
  np.testing.assert_array_equal(pool.apply(params, x, None), x[:, 3])
  pool, params = init("first")
  np.testing.assert_array_equal(pool.apply(params, x, MASK)[:2], x[:2, 0])


def test_cls_puts_a_learned_token_in_front():
  pool, params = init("cls")
  x, mask = pool.apply(params, tokens(), MASK, method="prepend")
  assert x.shape == (3, 5, 8) and mask.shape == (3, 5) and bool(mask[:, 0].all())
  np.testing.assert_array_equal(x[:, 1:], tokens())
  y = pool.apply(params, x, mask)
  np.testing.assert_array_equal(y, jnp.tile(params["params"]["cls"][None], (3, 1)))


def test_registers_stand_behind_the_learned_token():
  pool, params = init("cls", registers=2)
  x, mask = pool.apply(params, tokens(), MASK, method="prepend")
  own = params["params"]
  want = jnp.concatenate([own["cls"][None], own["registers"]])
  np.testing.assert_array_equal(x[:, :3], jnp.tile(want[None], (3, 1, 1)))
  np.testing.assert_array_equal(x[:, 3:], tokens())
  np.testing.assert_array_equal(mask[:, 3:], MASK)
  assert bool(mask[:, :3].all())
  np.testing.assert_array_equal(pool.apply(params, x, mask)[0], own["cls"])


def test_map_is_a_query_then_a_residual_mlp():
  pool, params = init("map")
  assert set(params["params"]) == {"probe", "attention", "norm", "mlp"}
  apply = jax.jit(pool.apply)
  y = apply(params, tokens(), MASK)
  assert y.shape == (3, 8) and len(np.unique(np.asarray(y))) > 8
  order = jnp.asarray([3, 1, 0, 2])  # a set, not a sequence
  shuffled = apply(params, tokens()[:, order], MASK[:, order])
  np.testing.assert_allclose(shuffled, y, atol=1e-6)


@pytest.mark.parametrize("kind", POOLS)
def test_padding_has_no_say_and_nothing_is_nan(kind):
  pool, params = init(kind)
  noisy = jnp.where(MASK[..., None], tokens(), tokens(1) * 100)

  def total(params, x):
    y = pooled(pool, params, x, MASK)
    return jnp.sum(jnp.square(y)), y

  grad = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))
  (grads, gx), y = grad(params, tokens())
  np.testing.assert_array_equal(grad(params, noisy)[1], y)
  assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves((grads, gx, y)))
  assert np.all(np.asarray(gx)[~np.asarray(MASK)] == 0)


@pytest.mark.parametrize("kind", POOLS)
def test_pooled_is_f32(kind):
  pool, params = init(kind, dtype=jnp.bfloat16)
  x = tokens().astype(jnp.bfloat16)
  y = jax.eval_shape(lambda: pooled(pool, params, x, MASK))
  assert y.dtype == jnp.float32 and y.shape == (3, 8)


def test_unknown_pool():
  with pytest.raises(ValueError, match="'max'"):
    filled(Pool("max", 8), tokens(), MASK)
