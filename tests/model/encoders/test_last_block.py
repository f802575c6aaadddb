"""The token that is pooled, computed alone in the last block, is that of all tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.encoders import config as configs
from model.encoders import towers
from model.layers.pool import ONE, Pool
from sharding import mesh as mesh_lib
from sharding import rules
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


def test_its_attention_sends_no_keys_to_other_devices():
  c = small(every=0, modalities=("image",))
  c.modalities.image.pool = "cls"
  net, batch = towers.build(c), configs.example(c, 8)
  sizes = dict(data=1, fsdp=2, expert=1, tensor=1)
  mesh = mesh_lib.make(sizes, jax.devices()[:2])

  def total(params, batch):
    return jnp.sum(jnp.sin(net.apply(params, batch)[0]["image"].pooled))

  with jax.set_mesh(mesh):
    params = jax.eval_shape(net.init, jax.random.key(0), batch)
    shardings = rules.specs(params, mesh)
    assert any("fsdp" in s.spec for s in jax.tree.leaves(shardings))
    step = jax.jit(
      jax.grad(total), in_shardings=(shardings, mesh_lib.batch_sharding(mesh))
    )
    text = step.lower(params, batch).compile().as_text()
  sent = [x for x in text.splitlines() if "all-to-all(" in x and "/attention/" in x]
  assert "all-gather" in text and not sent
