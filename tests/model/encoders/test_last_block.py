"""The token that is pooled, computed alone in the last block, is that of all tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.encoders import config as configs
from model.encoders import towers
from model.layers.pool import ONE, Pool
from tests.model.encoders.models import small
from tests.model.layers.filled import filled


@pytest.mark.parametrize("norm_after", [False, True])
@pytest.mark.parametrize(
  ("pool", "causal"), [*((pool, False) for pool in ONE), ("last", True)]
)
def test_pooled_is_the_token_of_all_tokens(pool, causal, norm_after):
  c = small(every=0, modalities=("text",))
  c.trunk.update(dict(causal=causal, norm_after=norm_after, layer_scale=0.5))
  c.embed_dim = c.trunk.width
  c.modalities.text.update(dict(pool=pool, project=False))
  net = towers.build(c)
  batch = configs.example(c, 4)
  mask = np.ones(batch["text"].shape, bool)
  mask[1, 1] = mask[2, -1] = False
  mask[3] = False
  batch = batch | {"text_mask": jnp.asarray(mask)}
  variables = filled(net, batch)
  e = jax.jit(lambda v: net.apply(v, batch)[0]["text"])(variables)
  read = Pool(pool, e.tokens.shape[-1])
  want = read.apply(variables_of(read, e), e.tokens, e.mask)
  np.testing.assert_allclose(e.pooled, want, atol=1e-5)
  assert np.abs(want[0]).max() > 0.1


def variables_of(pool, e):
  return pool.init(jax.random.key(0), e.tokens, e.mask)
