import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from model.moe import dispatch
from model.moe.routers import token_choice

G, S, E, W = 2, 24, 4, 3
SCALES = jnp.arange(1.0, E + 1).reshape(E, 1, 1)


def _experts(slots):
  return jnp.tanh(slots * SCALES + 0.5)  # not 0 in an empty slot


@functools.cache
def _case(k, slots):
  rng = np.random.default_rng(k)
  x, cotangent = rng.standard_normal((2, G, S, W)).astype(np.float32)
  gates = special.softmax(2 * rng.standard_normal((G, S, E)), -1).astype(np.float32)
  mask = rng.random((G, S)) < 0.8
  route = functools.partial(token_choice.route, k=k, slots=slots, priority=True)
  routes, expert = jax.jit(route)(gates, mask)
  return x, routes, expert, cotangent


def _run(method, x, gate, routes, cotangent):
  y, pull = jax.vjp(
    lambda x, gate: dispatch.apply(_experts, x, routes.replace(gate=gate), method),
    x,
    gate,
  )
  return y, *pull(cotangent)


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("slots", [4, 24])
def test_gather_and_einsum_are_the_definition(k, slots):
  x, routes, expert, cotangent = _case(k, slots)
  served = routes.slot < E * slots
  assert bool(jnp.any(~served)) and bool(jnp.any(served))
  hot = jax.nn.one_hot(expert, E) * served[..., None].astype(jnp.float32)

  def plain(x, gate):
    every = jnp.tanh(x[:, :, None] * SCALES[None, None, :, :, 0] + 0.5)  # [g, s, e, w]
    return jnp.einsum("gsew,gske,gsk->gsw", every, hot, gate)

  def pulled(x, gate):
    y, pull = jax.vjp(plain, x, gate)
    return y, *pull(cotangent)

  expected = jax.jit(pulled)(x, routes.gate)
  for method in ("gather", "einsum"):
    actual = jax.jit(_run, static_argnums=0)(method, x, routes.gate, routes, cotangent)
    for a, b in zip(actual, expected, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("method", ["gather", "einsum"])
def test_what_no_expert_serves_is_exactly_zero(method):
  x, routes, _, _ = _case(2, 4)
  y = jax.jit(lambda x: dispatch.apply(_experts, x, routes, method))(x)
  unserved = np.all(np.asarray(routes.slot) == E * 4, axis=-1)
  assert unserved.any()
  np.testing.assert_array_equal(np.asarray(y)[unserved], 0.0)
  assert np.all(np.any(np.asarray(y)[~unserved] != 0, axis=-1))


def test_the_gradient_of_a_gather_is_a_gather():
  x, routes, _, cotangent = _case(2, 4)
  program = jax.make_jaxpr(_run, static_argnums=0)
  assert "scatter" not in str(program("gather", x, routes.gate, routes, cotangent))


def test_without_a_mesh_there_is_one_shard():
  assert dispatch.batch_shards() == 1
  assert dispatch.mesh_axes() == {}
