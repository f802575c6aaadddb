"""Mixup: what it says it mixed is what it mixed; with whom, and how much."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.views import mix

B = 12
VALID = np.arange(B) != 4
KEY = jax.random.key(3)


def batch(b=B):
  rng = np.random.default_rng(0)
  return {
    "audio": rng.normal(size=(b, 5, 2)).astype(np.float32),
    "audio_mask": np.arange(5)[None] < rng.integers(1, 6, size=(b, 1)),
    "text": np.ones((b, 3), np.int32),
    "valid": np.resize(VALID, b),
  }


@pytest.mark.parametrize("group", [0, 4])
def test_it_mixes_what_it_says(group):
  given = batch()
  # Must reach nobody.
  given["audio"][4] = np.nan
  view = mix.View(modality="audio", beta=1.0, probability=0.8, group=group)
  seen = jax.device_get(jax.jit(view)(given, KEY))
  partner, share = (seen[k] for k in ("audio_mixed_partner", "audio_mixed_share"))
  mixed = np.flatnonzero(partner >= 0)
  assert 4 < len(mixed) < B and partner.dtype == np.int32
  for i in range(B):
    want, real = given["audio"][i], given["audio_mask"][i]
    if i in mixed:
      k = partner[i]
      assert k != i and VALID[i] and VALID[k] and 0 < share[i] < 1
      assert not group or k // group == i // group
      want = share[i] * want + (1 - share[i]) * given["audio"][k]
      real = real | given["audio_mask"][k]
    else:
      assert share[i] == 1
    np.testing.assert_allclose(seen["audio"][i], want, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(seen["audio_mask"][i], real)
  assert len(set(partner[mixed])) == len(mixed)  # of a permutation
  np.testing.assert_array_equal(seen["text"], given["text"])


def test_shares_are_of_the_beta_distribution_and_as_often_as_asked():
  view = mix.View(beta=0.15, probability=0.5, group=50)
  partner, share = jax.jit(lambda key: view.draw(key, 4000, np.ones(4000, bool)))(KEY)
  mixed = np.asarray(partner) >= 0
  assert abs(mixed.mean() - 0.5 * 49 / 50) < 0.03
  own = np.asarray(share)[mixed]
  # Mean 1/2, variance 1 / (4 (2 beta + 1)): most shares are near 0 or 1.
  assert abs(own.mean() - 0.5) < 0.03
  np.testing.assert_allclose(own.var(), 1 / (4 * 1.3), rtol=0.05)
  assert np.all(np.asarray(share)[~mixed] == 1)


def test_every_step_mixes_others():
  view = mix.View(probability=1.0)
  draw = jax.jit(lambda key: view.draw(key, B, np.ones(B, bool))[0])
  first, second = (np.asarray(draw(jax.random.key(i))) for i in range(2))
  assert (first != second).mean() > 0.5


def test_ids_and_groups_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match="'text' is int32: ids can be mixed as"):
    mix.View(modality="text")(batch(), KEY)
  with pytest.raises(ValueError, match=r"batch 12 is not divisible by group = 5"):
    mix.View(modality="audio", group=5)(batch(), KEY)
  with pytest.raises(ValueError, match="beta = 0"):
    mix.View(beta=0)


def test_groups_are_mixed_without_sending_them():
  """A device holds whole groups: nothing is gathered."""
  view = mix.View(modality="audio", group=2)
  mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
  split = jax.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))

  def blend(x, partner, share):
    return view.blend(x, partner, share)

  args = (jnp.ones((16, 4)), jnp.zeros(16, jnp.int32), jnp.ones(16))
  args = jax.device_put(args, split)
  text = jax.jit(blend, out_shardings=split).lower(*args).compile().as_text()
  assert "all-gather" not in text and "all-reduce" not in text
