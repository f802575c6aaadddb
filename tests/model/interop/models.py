"""Tiny models that other libraries can hold, and parameters for them."""

import jax
import numpy as np

from model.encoders import config as configs
from model.encoders import towers
from model.interop import describe

TRUNK = dict(width=8, depth=2, heads=2, mlp=12, epsilon=1e-5)


def clip(**trunk):
  image = dict(
    size=(8, 8, 3), patch=(4, 4), pool="cls", stem_bias=False, stem_norm=True
  )
  text = dict(vocab=9, length=5, pool="last", pad=-1, eos=8)
  own = TRUNK | dict(width=4, heads=1, causal=True)
  return describe.two_towers("clip", 6, (TRUNK | trunk, own | trunk), image, text)


def siglip():
  image = dict(size=(8, 8, 3), patch=(4, 4), pool="map", project=False)
  text = dict(vocab=9, length=5, pool="last", pad=-1, project_bias=True)
  c = describe.two_towers("siglip", 8, (TRUNK, TRUNK), image, text)
  c.objective.options.losses = describe.SIGLIP_LOSS
  return c


def filled(config):
  """Returns random parameters of a config, its losses' scalars included."""
  net = towers.build(config.model)
  example = configs.example(config.model)
  tree = jax.eval_shape(net.init, jax.random.key(0), example)["params"]
  rng = np.random.default_rng(0)
  fill = lambda a: rng.standard_normal(a.shape).astype(np.float32)  # noqa: E731
  loss = config.objective.options.losses[0][0]
  scalars = dict(infonce=["log_scale"], siglip=["log_scale", "bias"])[loss]
  own = {name: np.asarray(rng.standard_normal(), np.float32) for name in scalars}
  return {"towers": jax.tree.map(fill, tree), "objective": {loss: own}}


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)
