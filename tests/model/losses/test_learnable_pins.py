"""The margin loss of Learnable PINs: its walk down the ranking, and its sums in f64."""

import jax
import numpy as np
import pytest

from model.losses import learnable_pins
from tests import slopes

B, D = 10, 4
VALID = np.arange(B) % 4 != 2
TRACKS = np.array([0, 1, 2, 3, 4, 0, 6, 7, 4, 9], np.int32)
ALL = np.ones(B, bool)


def walk(d, track, valid, hardness):
  """The paper's words: from far to near, until the positive or the share is met."""
  rows = np.flatnonzero(valid)
  chosen = np.zeros(d.shape, bool)
  for i in rows:
    ranked = sorted(rows, key=lambda j: -d[i, j])
    for j in ranked[: int(hardness * len(rows) + 1e-9)]:
      if track[i] == track[j]:
        break
      chosen[i, j] = True
  return chosen


def distances(z):
  return np.linalg.norm(z["image"][:, None] - z["text"][None], axis=-1)


def select(d, track, valid, hardness):
  f = jax.jit(learnable_pins.negatives, static_argnums=3)
  same = track[:, None] == track[None, :]
  return np.asarray(f(d.astype(np.float32), same, valid, hardness))


@pytest.mark.parametrize("hardness", [0.0, 0.1, 0.3, 0.7, 0.8, 1.0])
@pytest.mark.parametrize("valid", [ALL, VALID], ids=["all", "some"])
def test_negatives_are_those_of_the_walk(valid, hardness):
  d = distances(slopes.unit(B, D))
  for track in (np.arange(B), TRACKS):
    got = select(d, track, valid, hardness)
    np.testing.assert_array_equal(got, walk(d, track, valid, hardness))


def test_nothing_nearer_than_the_positive_is_chosen():
  d = distances(slopes.unit(B, D))
  got = select(d, np.arange(B), ALL, 1.0)
  np.testing.assert_array_equal(got, d > np.diagonal(d)[:, None])


def test_the_least_share_is_the_single_farthest():
  d = distances(slopes.unit(B, D))
  got = select(d, np.arange(B), ALL, 1 / B)
  assert got.sum(1).max() == 1
  assert all(np.argmax(d[i]) == np.argmax(got[i]) for i in np.flatnonzero(got.any(1)))


def test_a_row_whose_positive_is_farthest_has_no_negatives():
  d = distances(slopes.unit(B, D))
  d[3, 3] = 5.0
  got = select(d, np.arange(B), ALL, 1.0)
  assert not got[3].any() and got.any()


@pytest.mark.parametrize("hardness", [0.3, 1.0])
def test_value_and_slope_are_the_double_loop(hardness):
  z = slopes.unit(B, D)
  # Fixed where it is: the choice has no slope.
  chosen = walk(distances(z), TRACKS, VALID, hardness)

  def loop(z):
    d = distances(z)
    total = np.mean([d[i, i] ** 2 for i in np.flatnonzero(VALID)])
    return total + np.mean(
      [max(0.0, 1.7 - d[i, j]) ** 2 for i, j in np.argwhere(chosen)]
    )

  loss = learnable_pins.Loss(margin=1.7, hardness=hardness)
  metrics = slopes.assert_is(loss, loop, z, {"valid": VALID, "id": TRACKS})
  assert metrics["learnable_pins/negative_image_text"] > 0
  np.testing.assert_allclose(
    metrics["learnable_pins/chosen_image_text"], chosen.sum() / VALID.sum(), rtol=1e-6
  )


def run(loss, z, batch):
  f = jax.jit(jax.value_and_grad(lambda z, batch: loss({}, z, batch), has_aux=True))
  return jax.device_get(f(z, batch))


@pytest.mark.parametrize("valid", [np.zeros(B, bool), np.arange(B) == 1])
def test_without_negatives_only_the_pull_is_left(valid):
  z = slopes.unit(B, D)
  (value, _), grad = run(learnable_pins.Loss(hardness=1.0), z, {"valid": valid})
  np.testing.assert_allclose(value, np.sum((z["image"] - z["text"])[valid] ** 2), 1e-6)
  assert all(np.isfinite(g).all() and np.all(g[~valid] == 0) for g in grad.values())


def test_perfect_pairs_and_duplicates_have_a_finite_slope():
  z = slopes.unit(B, D)
  z = {m: np.concatenate([z["image"]] * 2) for m in z}
  (value, _), grad = run(learnable_pins.Loss(hardness=1.0, margin=2.0), z, {})
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in grad.values())


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(margin=0.0), r"margin = 0\.0 must be above 0"),
    (dict(hardness=1.5), r"hardness = 1\.5 must be in \[0, 1\]"),
  ],
)
def test_options_that_make_no_sense(options, message):
  with pytest.raises(ValueError, match=message):
    learnable_pins.Loss(**options)
