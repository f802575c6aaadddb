"""Tiny models that other libraries can hold, and parameters for them."""

import jax
from ml_collections import ConfigDict
import numpy as np

from configs import base
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


def one_tower(kind):
  """Returns a config of what `convert.load` makes of DINOv2, or of BERT."""
  c = siglip()
  c.name = kind
  c.objective.options.losses = base.get_config().objective.options.losses
  image, text = c.model.modalities.image, c.model.modalities.text
  if kind == "dinov2":
    c.model.trunk.update(dict(layer_scale=0.5, activation="gelu", mlp=16))
    image.update(dict(pool="cls", registers=2))
    c.model.modalities = ConfigDict({"image": image})
  else:
    c.model.trunk.update(dict(norm_after=True, activation="gelu"))
    text.update(dict(pool="mean", pad=0, stem_norm=True, project=False))
    text.project_bias = False
    c.model.modalities = ConfigDict({"text": text})
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
  if len(config.model.modalities) == 1:
    return {"towers": jax.tree.map(fill, tree)}
  return {"towers": jax.tree.map(fill, tree), "objective": {loss: own}}


def same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)
