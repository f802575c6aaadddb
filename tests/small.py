"""Models and batches small enough for tests."""

import jax
import numpy as np

from configs import base
from training import setup as setup_lib


def tiny(**changes):
  c = base.get_config()
  c.batch_size = 16
  c.total_steps = 10
  c.optimizer.update(dict(warmup=2, lr=1e-2))
  c.model.embed_dim = 8
  c.model.trunk.update(dict(width=16, depth=1, heads=2, mlp=32))
  c.model.modalities.image.update(dict(size=(8, 8, 3), patch=(4, 4)))
  c.model.modalities.text.update(dict(vocab=32, length=6))
  c.mesh.data = 1
  c.update(changes)
  return c


def limoe(**changes):
  c = tiny(**changes)
  c.model.shared_trunk = True
  c.model.trunk.depth = 2
  c.model.moe.update(dict(every=2, experts=4, group=4, capacity=4.0, noise=1.0))
  c.model.moe.min_experts.update(dict(text=3.999, image=3.999))
  # local entropy of both modalities: every kind of loss is on
  c.model.moe.losses.local_entropy.image = 1.0
  return c


def batch_of(config, seed=0):
  rng = np.random.default_rng(seed)
  m = config.model.modalities
  b = config.batch_size
  text = rng.integers(1, m.text.vocab, (b, m.text.length)).astype(np.int32)
  mask = np.arange(m.text.length) < rng.integers(2, m.text.length + 1, (b, 1))
  return {
    "image": rng.standard_normal((b, *m.image.size)).astype(np.float32),
    "text": np.where(mask, text, 0).astype(np.int32),
    "text_mask": mask,
    "id": np.arange(b, dtype=np.int32),
    "valid": np.ones(b, bool),
  }


def one_device(config):
  return setup_lib.build(config, devices=jax.devices()[:1])
