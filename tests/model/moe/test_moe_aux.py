"""Every loss against float64 numpy, in value and (by finite differences) gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from model.moe import aux

G, S, E = 3, 10, 5
RNG = np.random.default_rng(0)
LOGITS = 2 * RNG.standard_normal((G, S, E))
NOISE = RNG.standard_normal((G, S, E)) / E
MASK = RNG.random((G, S)) < 0.7
MASK[1] = False  # a group of padding only
REAL_GROUPS = (0, 2)


def _softmax(logits):
  return special.softmax(logits, axis=-1)


def _groups(statistics):
  return [MASK] if statistics == "global" else [_only(g) for g in REAL_GROUPS]


def _only(g):
  mask = np.zeros_like(MASK)
  mask[g] = MASK[g]
  return mask


def _variation(x):
  return (np.std(x) / np.mean(x)) ** 2


def _entropy(p):
  return -np.sum(p * np.log(p), axis=-1)


def _importance(logits, statistics):
  gates = _softmax(logits)
  return np.mean([_variation(np.sum(gates[m], 0)) for m in _groups(statistics)])


def _load(logits, statistics, k):
  noisy = logits + NOISE
  eta = np.sort(noisy, -1)[..., -k][..., None]
  p = 1 - special.ndtr((eta - logits) * E)
  return np.mean([_variation(np.mean(p[m], 0)) for m in _groups(statistics)])


def _gshard(logits, statistics):
  gates = _softmax(logits + NOISE)
  first = np.eye(E)[np.argmax(gates, -1)]
  means = [(np.mean(first[m], 0), np.mean(gates[m], 0)) for m in _groups(statistics)]
  return np.mean([E * np.sum(f * p) for f, p in means])


def _z(logits):
  return np.mean(special.logsumexp(logits, axis=-1)[MASK] ** 2)


def _local(logits):
  return np.mean(_entropy(_softmax(logits))[MASK])


def _global(logits, statistics, least):
  gates = _softmax(logits)
  terms = [np.log(least) - _entropy(np.mean(gates[m], 0)) for m in _groups(statistics)]
  return np.mean(np.maximum(terms, 0))


def _jax_load(logits, statistics, k):
  noisy = logits + jnp.asarray(NOISE, jnp.float32)
  return aux.load(logits, noisy, MASK, k=k, sigma=1 / E, statistics=statistics)


def _jax_gshard(logits, statistics):
  noisy = logits + jnp.asarray(NOISE, jnp.float32)
  return aux.gshard(jax.nn.softmax(noisy), MASK, statistics)


CASES = {
  "importance_global": (
    lambda l: aux.importance(jax.nn.softmax(l), MASK, "global"),
    lambda l: _importance(l, "global"),
  ),
  "importance_group": (
    lambda l: aux.importance(jax.nn.softmax(l), MASK, "group"),
    lambda l: _importance(l, "group"),
  ),
  "load_global_k1": (
    lambda l: _jax_load(l, "global", 1),
    lambda l: _load(l, "global", 1),
  ),
  "load_group_k2": (lambda l: _jax_load(l, "group", 2), lambda l: _load(l, "group", 2)),
  "gshard_global": (
    lambda l: _jax_gshard(l, "global"),
    lambda l: _gshard(l, "global"),
  ),
  "gshard_group": (lambda l: _jax_gshard(l, "group"), lambda l: _gshard(l, "group")),
  "z": (lambda l: aux.z(l, MASK), _z),
  "local": (lambda l: aux.local_entropy(jax.nn.softmax(l), MASK), _local),
  "global_global": (
    lambda l: aux.global_entropy(jax.nn.softmax(l), MASK, 4.9, "global"),
    lambda l: _global(l, "global", 4.9),
  ),
  "global_group": (
    lambda l: aux.global_entropy(jax.nn.softmax(l), MASK, 4.9, "group"),
    lambda l: _global(l, "group", 4.9),
  ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient(name):
  function, reference = CASES[name]
  value, gradient = jax.jit(jax.value_and_grad(function))(
    jnp.asarray(LOGITS, jnp.float32)
  )
  assert value.dtype == jnp.float32 and value.shape == ()
  assert float(value) > 1e-3
  np.testing.assert_allclose(value, reference(LOGITS), rtol=2e-5)
  expected = np.zeros_like(LOGITS)
  for i in np.ndindex(*LOGITS.shape):
    step = np.zeros_like(LOGITS)
    step[i] = 1e-5
    expected[i] = (reference(LOGITS + step) - reference(LOGITS - step)) / 2e-5
  np.testing.assert_allclose(gradient, expected, atol=2e-5 * np.abs(expected).max())
  np.testing.assert_array_equal(np.asarray(gradient)[~MASK], 0.0)


@pytest.mark.parametrize(
  "name", ["importance", "load", "gshard", "z", "local", "global"]
)
@pytest.mark.parametrize("statistics", ["global", "group"])
def test_no_real_token_gives_zero_and_no_gradient(name, statistics):
  nobody = jnp.zeros((G, S), bool)

  def loss(logits):
    gates = jax.nn.softmax(logits)
    return {
      "importance": lambda: aux.importance(gates, nobody, statistics),
      "load": lambda: aux.load(
        logits, logits, nobody, k=1, sigma=0.2, statistics=statistics
      ),
      "gshard": lambda: aux.gshard(gates, nobody, statistics),
      "z": lambda: aux.z(logits, nobody),
      "local": lambda: aux.local_entropy(gates, nobody),
      "global": lambda: aux.global_entropy(gates, nobody, 3.0, statistics),
    }[name]()

  logits = jnp.asarray(LOGITS, jnp.float32)
  value, gradient = jax.jit(jax.value_and_grad(loss))(logits)
  assert float(value) == 0
  np.testing.assert_array_equal(gradient, 0.0)


@pytest.mark.parametrize("name", CASES)
def test_saturated_gates_have_finite_gradients(name):
  logits = jnp.asarray(1000 * np.sign(LOGITS), jnp.float32)
  value, gradient = jax.jit(jax.value_and_grad(CASES[name][0]))(logits)
  assert np.isfinite(value) and np.all(np.isfinite(gradient))


def test_what_padding_holds_does_not_count():
  for function, _ in CASES.values():
    dirty = np.where(MASK[..., None], LOGITS, np.nan).astype(np.float32)
    function = jax.jit(function)
    clean = function(jnp.asarray(LOGITS, jnp.float32))
    np.testing.assert_array_equal(function(jnp.asarray(dirty)), clean)


def test_global_entropy_vanishes_above_its_threshold():
  gates = jnp.full((1, 4, 8), 1 / 8)
  mask = jnp.ones((1, 4), bool)
  loss = jax.value_and_grad(lambda g: aux.global_entropy(g, mask, 5.0))
  value, gradient = loss(gates)
  assert float(value) == 0
  np.testing.assert_array_equal(gradient, 0.0)
  one = jnp.zeros((1, 4, 8)).at[..., 0].set(1.0)
  assert float(aux.global_entropy(one, mask, 5.0)) == pytest.approx(np.log(5.0))


def test_gshard_is_one_when_balanced_and_e_when_collapsed():
  mask = jnp.ones((1, 8), bool)
  spread = jax.nn.one_hot(jnp.arange(8)[None] % 4, 4)
  assert float(aux.gshard(spread, mask)) == pytest.approx(1.0)
  one = jnp.zeros((1, 8, 4)).at[..., 2].set(1.0)
  assert float(aux.gshard(one, mask)) == pytest.approx(4.0)


@pytest.mark.parametrize(
  ("images", "texts", "experts", "expected"), [(196, 16, 32, 0.065), (49, 16, 8, 0.134)]
)
def test_pooled_importance_hardly_sees_a_collapsed_modality(
  images, texts, experts, expected
):
  # The worked arithmetic for why LIMoE needs losses per modality: all text on expert 0.
  image = np.full((images, experts), 1 / (experts - 1))
  image[:, 0] = 0
  text = np.zeros((texts, experts))
  text[:, 0] = 1
  gates = jnp.asarray(np.concatenate([image, text])[None], jnp.float32)
  value = aux.importance(gates, jnp.ones((1, images + texts), bool))
  assert float(value) == pytest.approx(expected, abs=1e-3)
