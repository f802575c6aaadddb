"""Overflow in a whole transformer block: who is dropped, and what is left of them."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers.block import Block, TrunkConfig
from model.moe.config import MoeConfig
from model.moe.layer import MoeMlp

B, W, E = 4, 8, 4
SIZES = dict(image=5, text=3)


class Nothing(nn.Module):
  """A sparse MLP whose every token is dropped."""

  @nn.compact
  def __call__(self, x, routed, modality, train):
    return jnp.zeros_like(x), {}


@pytest.mark.parametrize("priority", [True, False])
def test_dropped_tokens_keep_their_residual_to_the_bit(priority):
  rng = np.random.default_rng(0)
  x = {m: rng.standard_normal((B, n, W)).astype(np.float32) for m, n in SIZES.items()}
  masks = {m: np.ones((B, n), bool) for m, n in SIZES.items()}
  masks["text"][:, -1] = False
  routed = np.concatenate([masks[m] for m in SIZES], axis=1)
  # One group of all examples, whose 2 slots per expert (rounded to 4) overflow.
  config = MoeConfig(experts=E, group=B, capacity_eval=0.25, priority=priority)
  trunk = TrunkConfig(width=W, depth=1, heads=2, mlp=16)
  block = Block(trunk, functools.partial(MoeMlp, config=config, mlp=16))
  bare = Block(trunk, Nothing)

  @jax.jit
  def run(key):
    params = block.init(key, x, masks, routed)["params"]
    # A router that has made up its mind, so that the order of the gates is no chance.
    params["moe"]["router"]["kernel"] *= 8.0
    (y, _), kept = block.apply(
      {"params": params}, x, masks, routed, mutable=["intermediates"]
    )
    del params["moe"]
    before, _ = bare.apply({"params": params}, x, masks, routed)
    sown = kept["intermediates"]["moe"]
    return y, before, sown["expert_index"][0], sown["expert_served"][0]

  y, before, expert, served = run(jax.random.key(0))
  y, before = (np.concatenate([v[m] for m in SIZES], axis=1) for v in (y, before))
  served = np.asarray(served)[..., 0]
  dropped = routed & ~served
  assert dropped.sum() >= 4 and served.sum() >= 4
  np.testing.assert_array_equal(y[dropped | ~routed], before[dropped | ~routed])
  assert np.all(np.any(y[served] != before[served], axis=-1))
  for e in range(E):
    wanted = routed & (np.asarray(expert)[..., 0] == e)
    assert served[wanted].sum() == min(wanted.sum(), 4)  # a full queue, and no more
