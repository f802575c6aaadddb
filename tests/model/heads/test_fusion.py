"""Late fusion: MLPs of each embedding and of all of them, under new names."""

import jax
import numpy as np
import pytest

from model.heads import fusion
from model.types import Encoded

B, KEY = 3, jax.random.key(0)
HEAD = fusion.Head(classes=4, layers=3, hidden=5)


def test_each_and_all_have_an_mlp_of_their_own():
  rng = np.random.default_rng(0)
  x = {m: rng.normal(size=(B, d)).astype(np.float32) for m, d in (("a", 2), ("b", 6))}
  encoded = {m: Encoded(v) for m, v in x.items()}
  params = jax.device_get(jax.jit(HEAD.init)(KEY, encoded))
  params = jax.tree.map(
    lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), params
  )
  got = jax.jit(lambda p: HEAD(p, encoded, KEY, True))(params)
  assert set(got) == {"a_class", "b_class", "fusion_class"}
  x["fusion"] = np.concatenate([x["a"], x["b"]], axis=1)
  for m, v in x.items():
    for j in range(3):
      v = v @ params[m][f"layer{j}"]["kernel"] + params[m][f"layer{j}"]["bias"][None]
      v = np.maximum(v, 0) if j < 2 else v
    assert v.shape == (B, 4)
    np.testing.assert_allclose(got[f"{m}_class"].pooled, v, rtol=1e-5, atol=1e-6)


def test_new_names_say_what_they_are_made_of():
  assert HEAD.sources(("a", "b")) == {
    "a_class": ("a",),
    "b_class": ("b",),
    "fusion_class": ("a", "b"),
  }


def test_sizes_that_make_no_sense():
  with pytest.raises(ValueError, match="layers = 0"):
    fusion.Head(classes=2, layers=0)
