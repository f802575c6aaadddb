"""Class vectors: logits, and the classifier of another task made out of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.heads import prototypes
from model.types import Encoded

B, D, V = 4, 6, 5
KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(B, D)).astype(np.float32)
SPEC = {"image": Encoded(X)}
PARAMS = {
  "classes": {
    "embedding": RNG.normal(size=(V, D)).astype(np.float32),
    "bias": RNG.normal(size=V).astype(np.float32),
  }
}


def logits(params, classes):
  head = prototypes.Head(classes=classes)
  return np.asarray(head(params, SPEC, KEY, True)["image"].pooled)


def test_logits_are_products_with_class_vectors_and_biases():
  own = PARAMS["classes"]
  want = [[x @ p + b for p, b in zip(*own.values())] for x in X]
  np.testing.assert_allclose(logits(PARAMS, V), want, rtol=1e-5)
  start = prototypes.Head(classes=V, bias=-2.0).init(KEY, SPEC)
  assert jax.tree.map(jnp.shape, start) == jax.tree.map(jnp.shape, PARAMS)
  np.testing.assert_array_equal(start["classes"]["bias"], -2)


def test_classes_that_two_tasks_share_have_the_same_logits():
  moved = prototypes.transfer(PARAMS, [4, -1, 0], KEY)
  got, old = logits(moved, 3), logits(PARAMS, V)
  np.testing.assert_allclose(got[:, [0, 2]], old[:, [4, 0]], rtol=1e-6)
  fresh = np.asarray(moved["classes"]["embedding"])[1]
  assert np.abs(fresh - PARAMS["classes"]["embedding"]).max(axis=1).min() > 0.1
  np.testing.assert_allclose(
    moved["classes"]["bias"][1], PARAMS["classes"]["bias"].mean(), rtol=1e-6
  )


@pytest.mark.parametrize("rows", [[0, 5], [-2], [[0]]])
def test_rows_that_there_are_not(rows):
  with pytest.raises(ValueError, match=r"rows must be in \[-1, 5\)"):
    prototypes.transfer(PARAMS, rows, KEY)


def test_a_head_without_classes():
  with pytest.raises(ValueError, match="classes = 0"):
    prototypes.Head(classes=0)
