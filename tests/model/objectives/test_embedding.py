"""Evaluation sees the heads that make the embedding, on what modalities there are."""

import jax
import numpy as np

from model.heads import codebook, projection
from model.objectives import contrastive, embedding, mixup
from model.types import Encoded
from training import step

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
SIDES = {
  m: Encoded(*(RNG.normal(size=s).astype(np.float32) for s in ((3, 4), (3, 2, 5))))
  for m in ("image", "text")
}
NAMES = ("image", "text")
HEADS = (
  (NAMES, "projection", dict(layers=1, out=6)),
  (NAMES, "codebook", dict(codes=8, width=7, temperature=1.0, block=4)),
  (("image_1",), "codebook", dict(codes=8, width=7)),
)


def test_only_heads_that_embed_and_only_on_what_is_there():
  objective = contrastive.Objective(heads=HEADS)
  code = objective.topped.built[1][1]
  own = jax.jit(code.init)(KEY, SIDES)
  params = {"heads": {"0": {}, "1": own, "2": {}}}
  for names in (NAMES, ("text",)):
    given = {m: SIDES[m] for m in names}
    got = jax.jit(lambda e: embedding.embed(objective, params, e))(given)
    assert set(got) == set(names)
    want = jax.jit(lambda e: code(own, e, KEY, False))(given)
    for m in names:
      np.testing.assert_allclose(got[m].pooled, want[m].pooled, rtol=1e-5, atol=1e-6)


def test_without_such_heads_the_towers_embed():
  plain = contrastive.Objective(heads=HEADS[:1])
  for objective in (plain, mixup.Objective(switch=1, heads=HEADS[:1]), object()):
    assert embedding.embed(objective, {}, SIDES) == SIDES
  assert codebook.Head.embeds and not hasattr(projection.Head, "embeds")


class Towers:
  """Dense ones that have encoded already."""

  moe = None

  def apply(self, params, batch, train, mutable):
    return (SIDES, {}), {}


def test_evaluation_encodes_with_them():
  objective = contrastive.Objective(heads=HEADS[1:2])
  own = jax.jit(objective.topped.init)(KEY, SIDES)
  params = {"towers": {}, "objective": {"heads": own}}
  encode = step.eval_encode(Towers(), objective)
  encoded, _ = jax.eval_shape(encode, params, {})
  assert {m: e.pooled.shape for m, e in encoded.items()} == dict.fromkeys(NAMES, (3, 7))
  plain, _ = jax.eval_shape(step.eval_encode(Towers()), params, {})
  assert plain["text"].pooled.shape == (3, 4)
