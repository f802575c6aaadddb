import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.moe import router
from model.moe.routers import token_choice

_assign = jax.jit(token_choice.assign, static_argnames=("experts", "slots"))


@pytest.mark.parametrize(
  ("tokens", "k", "factor", "experts", "slots"),
  [
    (480, 1, 1.05, 8, 64),  # 63 -> 64
    (65 * 32, 1, 1.05, 8, 276),  # 273 -> 276
    (480, 2, 1.05, 8, 128),  # 126 -> 128
    (160, 1, 1.1, 4, 44),  # exactly 44: binary 160 * 1.1 would make it 45 -> 48
    (8, 1, 1.0, 32, 4),  # 0.25: at least one, rounded up
    (12, 1, 100.0, 2, 12),  # never more than the tokens of the group ...
    (10, 2, 4.0, 4, 12),  # ... rounded up
  ],
)
def test_capacity(tokens, k, factor, experts, slots):
  assert router.capacity(tokens, k, factor, experts) == slots
  exact = router.capacity(tokens, k, factor, experts, multiple=1)
  assert slots - 4 < exact <= min(slots, tokens)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_top_k_is_that_of_jax_and_not_renormalised(k):
  gates = jax.nn.softmax(jax.random.normal(jax.random.key(0), (5, 7, 6)))
  gates = gates.at[0, 0].set(1 / 6)  # ties: the lower index
  values, indices = token_choice.top_k(gates, k)
  expected = jax.lax.top_k(gates, k)
  np.testing.assert_array_equal(values, expected[0])
  np.testing.assert_array_equal(indices, expected[1])
  gradient = jax.grad(lambda g: jnp.sum(token_choice.top_k(g, k)[0]))(gates)
  np.testing.assert_array_equal(np.sum(gradient, -1), np.full((5, 7), k))


def _by_hand(expert, priority, mask, experts, slots):
  """The definition, one token choice after the other."""
  s, k = expert.shape
  order = range(s) if priority is None else np.argsort(-priority, kind="stable")
  used = [0] * experts
  slot = np.full((s, k), experts * slots)
  entry = np.full((experts, slots), s * k)
  for j in range(k):
    for i in order:
      e = expert[i, j]
      if mask[i] and used[e] < slots:
        slot[i, j] = e * slots + used[e]
        entry[e, used[e]] = i * k + j
        used[e] += 1
  return slot, entry


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("prioritised", [False, True])
@pytest.mark.parametrize("slots", [4, 20])
def test_assign_is_the_definition(k, prioritised, slots):
  rng = np.random.default_rng(k)
  expert = np.stack([rng.permutation(5)[:k] for _ in range(32)]).astype(np.int32)
  priority = rng.choice([0.3, 0.5, 0.9, 0.95], 32).astype(np.float32)  # with ties
  mask = rng.random(32) < 0.8
  args = expert, priority if prioritised else None, mask
  slot, entry = _assign(*map(_array, args), experts=5, slots=slots)
  expected_slot, expected_entry = _by_hand(*args, 5, slots)
  np.testing.assert_array_equal(slot, expected_slot)
  np.testing.assert_array_equal(entry, expected_entry)
  if slots == 4:
    assert np.any((slot == 5 * slots) & mask[:, None]), "the case must overflow"


def _array(x):
  return None if x is None else jnp.asarray(x)


def test_priority_serves_the_surest_tokens_and_vanilla_the_first():
  expert = jnp.zeros((6, 1), jnp.int32)
  surest = jnp.array([0.1, 0.9, 0.5, 0.9, 0.2, 0.8])
  mask = jnp.ones(6, bool)
  _, vanilla = _assign(expert, None, mask, experts=1, slots=4)
  _, priority = _assign(expert, surest, mask, experts=1, slots=4)
  assert vanilla.tolist() == [[0, 1, 2, 3]]
  assert priority.tolist() == [[1, 3, 5, 2]]  # the tie of 1 and 3 in the array's order


def test_all_first_choices_go_before_any_second():
  # Tokens 0 and 1 want expert 0 second; 2 to 5 want it first, and fill it.
  expert = jnp.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 2], [0, 2]])
  surest = jnp.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.4])
  for priority in (None, surest):
    slot, entry = _assign(expert, priority, jnp.ones(6, bool), experts=3, slots=4)
    assert sorted(entry[0].tolist()) == [4, 6, 8, 10]  # token * 2 + choice 0
    assert slot[:2, 1].tolist() == [12, 12]  # not served
    assert entry[1].tolist()[:2] == [0, 2]
    assert sorted(entry[1].tolist()[2:]) == [5, 7]  # then the second choices


def test_padding_takes_no_slot_whatever_its_priority():
  expert = jnp.zeros((8, 1), jnp.int32)
  mask = jnp.array([False, True] * 4)
  priority = jnp.where(mask, 0.1, jnp.nan)
  slot, entry = _assign(expert, priority, mask, experts=2, slots=4)
  assert entry.tolist() == [[1, 3, 5, 7], [8] * 4]
  assert slot[:, 0].tolist() == [8, 0, 8, 1, 8, 2, 8, 3]


def test_noise_has_its_standard_deviation():
  logits = jnp.full((400, 8, 8), 3.0)
  noise = router.noisy(logits, jax.random.key(0), 0.125) - 3.0
  assert float(jnp.std(noise)) == pytest.approx(0.125, rel=0.02)
  assert float(jnp.mean(noise)) == pytest.approx(0, abs=0.005)
