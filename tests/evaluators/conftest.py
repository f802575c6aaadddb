"""A tiny model that needs no training and a split that needs no files."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from evaluators import context as context_lib
from input_pipeline import pipeline
from model.types import Encoded
from sharding import mesh as meshes

BATCH = 16


CLASSES = {"group": ("animals", "food-drink", "flags"), "flag": ("no", "yes")}


class Source(list):
  classes = CLASSES


class Split:
  """n rows whose image and text are the same vector; ids repeat once."""

  def __init__(self, n=37, seed=0):
    rng = np.random.default_rng(seed)
    self.vector = rng.normal(size=(n, 8)).astype(np.float32)
    self.vector[5] = self.vector[3]
    self.id = np.arange(n, dtype=np.int32)
    self.id[5] = 3
    self.group = (np.arange(n) % 3).astype(np.int32)
    self.group[0] = -1

  def rows(self):
    flag = (self.group == 2).astype(np.int32)
    return {
      "image": self.vector,
      "text": self.vector * 2.0,
      "text_mask": np.ones((len(self.id), 1), bool),
      "id": self.id,
      "label_group": self.group,
      "label_flag": flag,
    }

  def source(self, config, *, split, options=None):
    del config, split, options
    rows = self.rows()
    return Source({k: v[i] for k, v in rows.items()} for i in range(len(self.id)))

  def batches(
    self, config, *, split, batch_size, process_index, process_count, options
  ):
    del config, split, options
    assert (process_index, process_count) == (0, 1)
    n, out = len(self.id), []
    for start in range(0, n, batch_size):
      at = np.arange(start, start + batch_size)
      batch = {k: v[np.minimum(at, n - 1)] for k, v in self.rows().items()}
      out.append(batch | {"valid": at < n})
    return out

  def tokenize(self, config, texts, *, modality):
    del config
    # The prompt of a class is the centroid of its examples; of another text, zero.
    names = {"animals": 0, "food drink": 1, "flags": 2}
    out = [
      self.vector[self.group == names[t]].sum(0) if t in names else np.zeros(8)
      for t in texts
    ]
    return {modality: np.asarray(out, np.float32)}


@pytest.fixture
def split(monkeypatch):
  fake = Split()
  monkeypatch.setattr(pipeline, "eval_batches", fake.batches, raising=False)
  monkeypatch.setattr(pipeline, "source", fake.source, raising=False)
  monkeypatch.setattr(pipeline, "tokenize", fake.tokenize, raising=False)
  return fake


class Encode:
  """Multiplies by a matrix; counts how often it is traced."""

  traced = 0

  def __call__(self, params, batch):
    self.traced += 1
    valid = batch["valid"].astype(jnp.float32)
    aux = {
      "metrics/moe/layer01/load/image": jnp.stack([valid.sum(), -valid.sum()]),
      "metrics/moe/layer01/load/text": jnp.ones(2),
      "metrics/moe/layer01/served/text": jnp.float32(0.5),
      "metrics/moe/layer03/load/image": jnp.ones(2),
      "metrics/moe/layer03/load/text": jnp.ones(2),
      "metrics/moe/layer03/served/text": jnp.float32(1.0),
      "losses/moe_z": jnp.float32(1.0),
    }
    out = {m: Encoded(batch[m] @ params["w"]) for m in ("image", "text") if m in batch}
    return out, aux


@pytest.fixture
def context(split, tmp_path):
  config = ConfigDict(
    dict(
      batch_size=BATCH,
      data=dict(source="fake"),
      model=dict(modalities=dict(image={}, text={})),
    )
  )
  mesh = meshes.make(dict(data=4, fsdp=2))
  return context_lib.Context(mesh, Encode(), config, str(tmp_path))


@pytest.fixture
def params():
  return {"w": jax.numpy.eye(8)}
