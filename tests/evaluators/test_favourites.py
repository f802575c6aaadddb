"""What each expert likes, against loops over the tokens."""

import collections

from ml_collections import ConfigDict
import numpy as np
import pytest

from configs import base
from evaluators.favourites import Favourites, Patches, Words, grid

E, B, N, K, VOCAB = 3, 6, 4, 2, 7


def _route(rng, b=B):
  index = np.stack([rng.permutation(E)[:K] for _ in range(b * N)]).reshape(b, N, K)
  index[rng.random((b, N)) < 0.2] = -1
  served = (rng.random((b, N, K)) < 0.7) & (index >= 0)
  return {"index": index, "served": served, "gate": rng.random((b, N, K))}


def _tokens(route):
  """Yields (example, token, expert, gate) of every served choice."""
  for b, n, k in zip(*np.nonzero(route["served"])):
    yield b, n, route["index"][b, n, k], route["gate"][b, n, k]


@pytest.mark.parametrize("keep", [2, 50])
def test_patches_are_the_largest_gates_one_of_an_example(keep):
  rng = np.random.default_rng(0)
  found = Patches.none(E, keep)
  best = [{} for _ in range(E)]
  for first in (0, B):
    route = _route(rng)
    found.add(route, first + np.arange(B))
    for b, n, e, gate in _tokens(route):
      best[e][first + b] = max(best[e].get(first + b, (0.0, 0)), (gate, n))
  for e in range(E):
    expected = sorted(((g, i, n) for i, (g, n) in best[e].items()), reverse=True)[:keep]
    assert 1 < len(expected) <= keep
    some = found.index[e] >= 0
    assert some.sum() == len(expected) and (found.gate[e][~some] == 0).all()
    got = zip(found.gate[e][some], found.index[e][some], found.position[e][some])
    for (gate, *where), (wanted, *place) in zip(got, expected, strict=True):
      assert gate == pytest.approx(wanted) and where == place


def test_words_are_ranked_by_their_share_over_the_base_rate():
  rng = np.random.default_rng(1)
  found = Words.none(E, VOCAB)
  served = [collections.Counter() for _ in range(E)]
  seen = collections.Counter()
  for _ in range(3):
    route, ids = _route(rng), rng.integers(1, VOCAB, (B, N))
    real = rng.random((B, N)) < 0.8
    found.add(route, ids, real)
    seen.update(ids[real].tolist())
    for b, n, e, _ in _tokens(route):
      if real[b, n]:
        served[e][int(ids[b, n])] += 1
  arrays = found.arrays(keep=5, least=3)
  assert arrays["id"].shape == arrays["count"].shape == arrays["lift"].shape == (E, 5)
  for e in range(E):
    total, of_all = served[e].total(), seen.total()
    lift = {w: c / total / (seen[w] / of_all) for w, c in served[e].items() if c >= 3}
    wanted = sorted(lift, key=lambda w: (-lift[w], -served[e][w], w))[:5]
    got = [w for w in arrays["id"][e] if w >= 0]
    assert got == wanted and len(got) > 0
    np.testing.assert_allclose(
      arrays["lift"][e][: len(got)], [lift[w] for w in got], rtol=1e-6
    )
    assert arrays["count"][e][: len(got)].tolist() == [served[e][w] for w in got]
    assert (arrays["count"][e][len(got) :] == 0).all()


def test_a_word_seldom_served_is_nobodys_favourite():
  words = Words.none(2, VOCAB)
  route = {"index": np.zeros((1, 3, 1), int), "served": np.ones((1, 3, 1), bool)}
  words.add(route, np.array([[5, 5, 6]]), np.ones((1, 3), bool))
  arrays = words.arrays(keep=2, least=2)
  assert arrays["id"].tolist() == [[5, -1], [-1, -1]]
  assert np.isfinite(arrays["lift"]).all()


def test_class_tokens_ngrams_and_padding_rows_are_left_out():
  image = dict(stem="patches", size=(4, 2, 3), patch=(2, 1))
  text = dict(stem="tokens", vocab=VOCAB, length=2, ngrams=3)
  modalities = dict(image=image, text=text)
  model = ConfigDict(dict(moe=dict(experts=2), modalities=modalities))
  assert grid(model.modalities.image) == (2, 2)
  found = Favourites(model, keep=1, least=1)

  def route(n, best):
    gate = np.full((2, n, 1), 0.5)
    gate[:, best] = 0.9
    served = np.ones((2, n, 1), bool)
    return {"index": np.zeros((2, n, 1), int), "served": served, "gate": gate}

  rows = {
    "text": np.array([[4, 5, 6, 6, 6], [6, 6, 6, 6, 6]]),  # two ids, three n-grams
    "text_mask": np.array([[True, False], [True, True]]),
    "valid": np.array([True, False]),
  }
  # Five image tokens: the class token and four patches, of which the third is best.
  routes = {("layer01", "image"): route(5, 3), ("layer01", "text"): route(3, 0)}
  found.add(routes, rows, np.array([8, 9]))
  arrays = found.arrays()
  assert arrays["patches/layer01/image/position"].tolist() == [[2], [-1]]
  assert arrays["patches/layer01/image/index"].tolist() == [[8], [-1]]
  assert arrays["words/layer01/text/id"].tolist() == [[4], [-1]]
  assert arrays["words/layer01/text/count"].tolist() == [[1], [0]]


def test_the_frames_of_a_video_lie_below_each_other_and_a_bar_is_a_row():
  video = base.modality(size=(4, 8, 6, 3), patch=(2, 4, 3))
  music = base.modality(stem="token_patches", vocab=9, length=5, patch=(7,))
  sound = base.modality(size=(8, 4, 1), patch=(2, 4))
  assert list(map(grid, (video, music, sound))) == [(4, 2), (5, 1), (4, 1)]
