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
