"""Schedules, weight decay, freezing and per-path rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from training import optimizer


def config(**changes):
  c = base.get_config().optimizer
  c.update(dict(lr=1.0, warmup=10, clip=0.0, weight_decay=0.0))
  c.update(changes)
  return c


PARAMS = {
  "a": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones((2,))},
  "b": {"kernel": jnp.ones((2, 2)), "scale": jnp.ones((2,))},
}


def test_schedules_warm_up_and_end_where_they_should():
  cosine = optimizer.schedule(config(), 110)
  assert [float(cosine(s)) for s in (0, 5, 10)] == pytest.approx([0, 0.5, 1])
  assert float(cosine(60)) == pytest.approx(0.5, abs=1e-6)
  assert float(cosine(110)) == pytest.approx(0, abs=1e-6)
  rsqrt = optimizer.schedule(config(schedule="rsqrt", timescale=30, cooldown=20), 300)
  assert float(rsqrt(100)) == pytest.approx((1 + 90 / 30) ** -0.5)
  assert float(rsqrt(290)) == pytest.approx(0.5 * (1 + 280 / 30) ** -0.5)
  assert float(rsqrt(300)) == 0


def test_bad_names_and_lengths_explain_themselves():
  with pytest.raises(ValueError, match=r"optimizer.schedule = 'cosin'.*cosine"):
    optimizer.schedule(config(schedule="cosin"), 100)
  with pytest.raises(ValueError, match=r"optimizer.name = 'adam'.*adamw"):
    optimizer.build(config(name="adam"), 100)
  with pytest.raises(ValueError, match=r"10 \+ 95 exceeds config.total_steps = 100"):
    optimizer.schedule(config(schedule="constant", cooldown=95), 100)
  with pytest.raises(ValueError, match="'nothing' matches no parameter"):
    optimizer.frozen_mask(config(frozen=("nothing",)), PARAMS)


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_only_kernels_decay(name):
  tx = optimizer.build(config(name=name, weight_decay=0.5, warmup=0), 100)
  state = tx.init(PARAMS)
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  updates, _ = tx.update(zero, state, PARAMS)
  np.testing.assert_allclose(updates["a"]["kernel"], -0.5, rtol=1e-6)
  for leaf in (updates["a"]["bias"], updates["b"]["scale"]):
    np.testing.assert_allclose(leaf, 0, atol=1e-7)


def test_rates_by_path():
  tx = optimizer.build(config(lr_scale=(("^a/", 0.1),), warmup=0), 100)
  updates, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
  ratio = updates["a"]["kernel"] / updates["b"]["kernel"]
  np.testing.assert_allclose(ratio, 0.1, rtol=1e-5)


@pytest.mark.parametrize("key", ["clip", "weight_decay", "lr_scale"])
def test_a_run_can_go_on_with_what_was_switched_off(key):
  on, off = {"lr_scale": (("a/", 0.5),)}.get(key, 0.1), () if key == "lr_scale" else 0.0
  states = [
    optimizer.build(config(name="adamw", **{key: value}), 100).init(PARAMS)
    for value in (on, off)
  ]
  first, second = (jax.tree_util.tree_leaves_with_path(s) for s in states)
  assert [path for path, _ in first] == [path for path, _ in second]
