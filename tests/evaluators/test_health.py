import numpy as np
import pytest

from evaluators import health


def unit(rng, n, d):
  x = rng.normal(size=(n, d)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("tile", [3, 1024])
def test_uniformity_matches_the_definition(tile):
  x = unit(np.random.default_rng(0), 11, 5)
  terms = [
    np.exp(-2.0 * np.sum((x[i] - x[j]) ** 2))
    for i in range(11)
    for j in range(11)
    if i != j
  ]
  assert health.uniformity(x, tile=tile) == pytest.approx(
    np.log(np.mean(terms)), abs=1e-5
  )


def test_uniformity_tells_collapse_from_spread():
  rng = np.random.default_rng(0)
  assert health.uniformity(np.tile(unit(rng, 1, 64), (50, 1))) == pytest.approx(
    0.0, abs=1e-5
  )
  assert health.uniformity(unit(rng, 500, 64)) < -3.5
  with pytest.raises(ValueError, match="two points"):
    health.uniformity(unit(rng, 1, 4))


def test_alignment():
  x = unit(np.random.default_rng(0), 10, 8)
  assert health.alignment(x, x) == 0.0
  assert health.alignment(x, -x) == pytest.approx(4.0, abs=1e-5)


def test_modality_gap_sees_a_shift_and_not_a_shuffle():
  x = unit(np.random.default_rng(0), 10, 8)
  assert health.modality_gap(x, x[::-1]) == pytest.approx(0.0, abs=1e-6)
  shift = np.zeros(8, np.float32)
  shift[3] = 0.5
  assert health.modality_gap(x, x + shift) == pytest.approx(0.5, abs=1e-5)


def test_effective_rank():
  assert health.effective_rank(np.eye(6, dtype=np.float32)) == pytest.approx(6.0)
  one = np.outer(np.arange(1.0, 9.0), np.ones(6)).astype(np.float32)
  assert health.effective_rank(one) == pytest.approx(1.0, abs=1e-6)
  s = np.asarray([3.0, 1.0])
  p = s / s.sum()
  assert health.effective_rank(np.diag(s)) == pytest.approx(
    np.exp(-(p * np.log(p)).sum())
  )


@pytest.mark.parametrize("tile", [3, 1024])
def test_hubness_is_the_skewness_of_how_often_items_are_found(tile):
  stats = pytest.importorskip("scipy.stats")
  rng = np.random.default_rng(0)
  q, g = unit(rng, 40, 3), unit(rng, 17, 3)
  times = np.zeros(17)
  for x in q:
    times[np.argsort(-(g @ x), kind="stable")[:4]] += 1
  got = health.hubness(q, g, k=4, tile=tile)
  assert got["skew"] == pytest.approx(stats.skew(times))
  assert got["never"] == (times == 0).mean()


def test_a_hub_is_seen_and_equal_items_are_not_all_found():
  rng = np.random.default_rng(0)
  q = unit(rng, 50, 8)
  g = np.concatenate([unit(rng, 50, 8), unit(rng, 1, 8)])
  g[-1] = q.mean(axis=0) / np.linalg.norm(q.mean(axis=0))
  assert health.hubness(q, g, k=3)["skew"] > health.hubness(q, g[:-1], k=3)["skew"]
  assert health.hubness(np.ones((5, 1)), np.ones((4, 1)), k=1)["never"] == 0.75
  assert health.hubness(q, q, k=50) == {"skew": 0.0, "never": 0.0}
  with pytest.raises(ValueError, match="needs points, got 0 and 51"):
    health.hubness(q[:0], g)
