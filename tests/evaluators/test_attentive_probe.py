"""A probe that attends sees what lies in one token only; padding is not seen."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from evaluators import attentive_probe, features
from model.types import Encoded
from sharding import mesh as meshes

W, CLASSES = 8, 3


@pytest.fixture(scope="module")
def alone():
  return meshes.make(dict(data=1), jax.devices()[:1])


def needle(n, seed):
  """One token of five says the class, at any place; the mean of all says little."""
  rng = np.random.default_rng(seed)
  y = rng.integers(0, CLASSES, n).astype(np.int32)
  x = rng.normal(size=(n, 5, W)).astype(np.float32)
  x[:, :, 0] = 0
  place = rng.integers(0, 5, n)
  x[np.arange(n), place] = 0
  x[np.arange(n), place, 0] = 5
  x[np.arange(n), place, 1 + y] = 5
  return features.Labelled(x, y, np.arange(n), np.ones((n, 5), bool))


def test_it_finds_the_token_that_tells(context, alone):
  context = dataclasses.replace(context, mesh=alone)
  evaluator = attentive_probe.Evaluator(
    context, heads=2, lr=(1e-6, 3e-2), epochs=30, minibatch=64
  )
  train, test = needle(256, 0), needle(100, 1)
  predicted, lr = evaluator._predict(train, test)
  assert lr == 3e-2  # the other one learns nothing
  assert (predicted == test.y).mean() > 0.95


def test_the_attention_by_hand_and_without_padding():
  params = attentive_probe.init(W, 2, CLASSES, 0)
  params["w"] = np.random.default_rng(1).normal(size=(W, CLASSES)).astype(np.float32)
  data = needle(4, 2)
  mask = np.array([[True] * 3 + [False] * 2] * 4)
  got = attentive_probe.attend(params, jnp.asarray(data.x), jnp.asarray(mask))
  want = np.zeros((4, CLASSES))
  for i in range(4):
    x = data.x[i, :3]
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    y = []
    for h in range(2):
      scores = (x @ params["key"][:, h]) @ params["query"][h] / 2
      p = np.exp(scores - scores.max())
      y.append((p / p.sum()) @ (x @ params["value"][:, h]))
    want[i] = np.concatenate(y) @ params["w"]
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_evaluator_encodes_tokens_once(context, params, alone):
  def encode(params, batch):
    encoded, aux = context.encode(params, batch)
    x = jnp.stack([batch["image"], -batch["image"]], axis=1)
    return {"image": Encoded(encoded["image"].pooled, x)}, aux

  new = dataclasses.replace(context, encode=encode, mesh=alone)
  evaluator = attentive_probe.Evaluator(new, heads=2, epochs=2, bootstrap=10)
  got = evaluator.run(params)
  assert got["group_n"] == 36 and got["group_lr"] in (1e-3, 1e-2)
  assert 0 <= got["group_top1"] <= 1
  assert got["group_top1_low"] <= got["group_top1_high"]
  assert context.encode.traced == 1


def test_errors(context, params):
  with pytest.raises(ValueError, match=r"lr = \(0\.0,\) must be some numbers above 0"):
    attentive_probe.Evaluator(context, lr=(0.0,))
  with pytest.raises(ValueError, match="'image' has no tokens"):
    attentive_probe.Evaluator(context).run(params)
  with pytest.raises(ValueError, match="heads = 3 must divide the width"):
    attentive_probe.init(8, 3, 2, 0)
