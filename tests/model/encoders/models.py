"""Models and batches of the encoder tests: width 16, depth 2, tiny inputs."""

import jax.numpy as jnp
import numpy as np

from configs import base

AUDIO = dict(size=(8, 4, 1), patch=(2, 2))


def small(shared=True, every=2, modalities=("audio", "image", "text"), **changes):
  """Returns `config.model` of an image, a text and a spectrogram modality."""
  c = base.get_config().model
  c.shared_trunk = shared
  c.embed_dim = 8
  c.trunk.update(dict(width=16, depth=2, heads=2, mlp=16))
  c.moe.update(dict(every=every, experts=4, group=2, capacity_eval=1.0))
  c.moe.min_experts.update(dict(text=2.0, image=3.0))
  c.modalities.image.update(dict(size=(8, 8, 3), patch=(4, 4)))
  c.modalities.text.update(dict(vocab=9, length=3))
  c.modalities.audio = base.modality(**AUDIO)
  for name in ("audio", "image", "text"):
    if name not in modalities:
      del c.modalities[name]
      for loss in (c.moe.losses.local_entropy, c.moe.losses.global_entropy):
        if every and name in loss:
          del loss[name]
  c.update(changes)
  return c


def batch_of(names=("audio", "image", "text"), b=4, seed=0):
  """Returns a batch with padding in every modality that can have any."""
  rng = np.random.default_rng(seed)
  rows = np.arange(b)[:, None]
  batch = {
    "audio": rng.standard_normal((b, 8, 4)).astype(np.float32),
    "audio_mask": np.arange(8) < 8 - 3 * (rows % 3),
    "image": rng.standard_normal((b, 8, 8, 3)).astype(np.float32),
    "text": rng.integers(1, 9, (b, 3)).astype(np.int32),
    "text_mask": np.arange(3) < 3 - rows % 3,
    "id": np.arange(b, dtype=np.int32),
  }
  keep = ("id", *names, *(f"{m}_mask" for m in names))
  return {k: jnp.asarray(v) for k, v in batch.items() if k in keep}
