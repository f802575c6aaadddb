"""Match probabilities by four loops, and the evaluator on Gaussians that are known."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from evaluators import matching
from model.types import Encoded


@pytest.mark.parametrize("tile", [2, 64])
def test_probabilities_are_those_of_the_definition(tile):
  rng = np.random.default_rng(0)
  a, b = (rng.normal(size=(n, 3, 4)).astype(np.float32) for n in (5, 6))
  got = matching.probability(a, b, scale=1.5, shift=2.0, tile=tile)
  for i in range(5):
    for j in range(6):
      total = 0.0
      for x in a[i]:
        for y in b[j]:
          s = 2.0 - 1.5 * np.sqrt(np.sum((x - y) ** 2) + 1e-6)
          total += np.exp(s) / (np.exp(s) + np.exp(-s))
      assert got[i, j] == pytest.approx(total / 9, abs=1e-6)


def test_ranks_by_hand_ties_included():
  p = np.array([[0.5, 0.9, 0.5], [0.1, 0.2, 0.3]])
  got = matching.ranks(p, np.array([0, 1]), np.array([0, 1, 2]))
  assert got.tolist() == [2, 1]


def gaussian(context, spread=-8.0):
  """The fake towers as Gaussians; a row of a larger first entry is less sure."""

  def encode(params, batch):
    encoded, aux = context.encode(params, batch)
    return {
      m: Encoded(e.pooled, log_var=jnp.full_like(e.pooled, spread) + e.pooled[:, :1])
      for m, e in encoded.items()
    }, aux

  return dataclasses.replace(context, encode=encode)


def test_evaluator(context, params, split):
  whole = split.rows
  split.rows = lambda: whole() | {"text": split.vector}
  loss = {"log_scale": jnp.float32(np.log(3.0)), "shift": jnp.float32(2.0)}
  params = params | {"objective": {"losses": {"0": loss}}}
  got = matching.Evaluator(gaussian(context), bootstrap=20).run(params)
  assert got["i2t_r1"] == 1.0 == got["i2t_sure_r1"] == got["t2i_unsure_r1"]
  assert got["i2t_r1_low"] == 1.0
  want = np.exp((split.vector[:, 0] - 8) / 2).mean()
  assert got["std/image"] == pytest.approx(want, rel=1e-5)
  assert got["match/image_text"] > 0.9
  assert got == matching.Evaluator(gaussian(context), bootstrap=20).run(params)
  wide = matching.Evaluator(gaussian(context, 4.0)).run(params)
  assert wide["match/image_text"] < 0.1 and wide["i2t_r1"] < 0.5
  given = matching.Evaluator(gaussian(context), scale=3.0, shift=2.0).run(params)
  assert given["match/image_text"] == pytest.approx(got["match/image_text"], abs=1e-6)


def test_errors(context, params):
  with pytest.raises(ValueError, match="one loss 'pcme', found 0"):
    matching.Evaluator(context).run(params)
  with pytest.raises(ValueError, match="'image' has no variance"):
    matching.Evaluator(context, scale=1.0).run(params)
