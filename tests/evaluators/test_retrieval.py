import numpy as np
import pytest

from evaluators import gallery, retrieval


def unit(rng, n, d):
  x = rng.normal(size=(n, d)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def brute_rank(q, g, qid, gid):
  """The definition, one pair at a time."""
  out = []
  for i in range(len(q)):
    s = [float(np.dot(q[i], x)) for x in g]
    best = max(v for v, j in zip(s, gid) if j == qid[i])
    out.append(sum(v >= best - gallery.TIE for v, j in zip(s, gid) if j != qid[i]))
  return np.asarray(out)


@pytest.mark.parametrize("tile", [1, 7, 1024])
@pytest.mark.parametrize("tied", [False, True])
def test_ranks_match_brute_force(tile, tied):
  rng = np.random.default_rng(0)
  q, g = unit(rng, 23, 4), unit(rng, 31, 4)
  if tied:  # many gallery items at exactly the same place
    g = g[rng.integers(0, 6, 31)]
  gid = rng.integers(0, 9, 31).astype(np.int32)
  qid = gid[rng.integers(0, 31, 23)]
  found = gallery.search(q, g, qid, gid, tile=tile)
  np.testing.assert_array_equal(found.rank, brute_rank(q, g, qid, gid))
  np.testing.assert_array_equal(found.positives, [(gid == i).sum() for i in qid])
  expected = -np.sort(-(q @ g.T), axis=1)[:, :5]
  np.testing.assert_allclose(found.score, expected, atol=1e-6)
  np.testing.assert_allclose(
    np.take_along_axis(q @ g.T, found.top, 1), expected, atol=1e-6
  )


def test_a_collapsed_model_scores_nothing():
  z = np.tile(unit(np.random.default_rng(0), 1, 64), (200, 1))
  ids = np.arange(200, dtype=np.int32)
  metrics = retrieval.summarise(gallery.search(z, z, ids, ids), 200)
  assert metrics["r1"] == metrics["r5"] == metrics["r10"] == 0.0
  assert metrics["median_rank"] == 200


def test_a_collapsed_model_of_equal_ids_is_right():
  z = np.ones((3, 1), np.float32)
  ids = np.zeros(3, np.int32)
  metrics = retrieval.summarise(gallery.search(z, z, ids, ids), 3)
  assert metrics["r1"] == 1.0 == metrics["mrr"] == metrics["chance_r1"]


def test_ties_come_in_order_of_position():
  z = np.ones((6, 1), np.float32)
  ids = np.arange(6, dtype=np.int32)
  found = gallery.search(z, z, ids, ids, k=6)
  np.testing.assert_array_equal(found.top, np.tile(np.arange(6), (6, 1)))


def test_summary_of_known_ranks():
  found = gallery.Neighbours(
    rank=np.asarray([0, 4, 5, 20]), top=None, score=None, positives=np.ones(4, int)
  )
  m = retrieval.summarise(found, 40)
  assert (m["r1"], m["r5"], m["r10"]) == (0.25, 0.5, 0.75)
  assert m["median_rank"] == 5.5
  assert m["mrr"] == pytest.approx((1 + 1 / 5 + 1 / 6 + 1 / 21) / 4)
  assert m["chance_r1"] == pytest.approx(1 / 40)
  assert m["chance_r10"] == pytest.approx(10 / 40)


def test_chance_matches_random_orders():
  rng = np.random.default_rng(0)
  ids = np.asarray([0, 0, 0, 1, 1, 2, 3, 4])
  hits = []
  for _ in range(4000):
    order = rng.permutation(8)[:3]
    hits.append(np.mean([(ids[order] == i).any() for i in ids]))
  positives = (ids[:, None] == ids).sum(1)
  assert retrieval.chance(positives, 8, 3) == pytest.approx(np.mean(hits), abs=0.01)


def test_a_query_without_positive_is_an_error():
  z = np.eye(3, dtype=np.float32)
  with pytest.raises(ValueError, match=r"ids \[7\]"):
    gallery.search(z, z, np.asarray([0, 7, 2]), np.asarray([0, 1, 2]))


def test_a_diverged_model_is_an_error():
  z = np.eye(3, dtype=np.float32)
  ids = np.arange(3)
  with pytest.raises(ValueError, match="query embeddings hold NaN"):
    gallery.search(z * np.nan, z, ids, ids)


def test_names_of_directions():
  assert retrieval.direction("image", "text", ("image", "text")) == "i2t"
  names = ("audio", "action")
  assert retrieval.direction("audio", "action", names) == "audio2action"


def test_recall_and_reciprocal_rank_are_scikit_learns_where_nothing_is_equal():
  metrics = pytest.importorskip("sklearn.metrics")
  rng = np.random.default_rng(3)
  q, g = unit(rng, 40, 6), unit(rng, 40, 6)
  ids = np.arange(40, dtype=np.int32)
  found = retrieval.summarise(gallery.search(q, g, ids, ids), 40)
  scores = q @ g.T
  for k in (1, 5, 10):
    want = metrics.top_k_accuracy_score(ids, scores, k=k)
    assert found[f"r{k}"] == pytest.approx(want)
  want = metrics.label_ranking_average_precision_score(np.eye(40), scores)
  assert found["mrr"] == pytest.approx(want)
