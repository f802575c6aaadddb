"""CLEF's first stage against a double loop in f64."""

import jax
import numpy as np
import pytest

from model.losses import clef, infonce
from tests import slopes

B, D, T = 8, 4, 0.4
VALID = np.arange(B) != 2
GROUP = np.array([3, 3, 3, 7, 7, 3, 5, 7], np.int32)
SUBJECT = np.array([0, 0, 1, 0, 2, 2**30, 0, 2], np.int32)
BATCH = {"valid": VALID, "label": GROUP, "who": SUBJECT}


def loop(z, subjects, text=1.0):
  """One row at a time; descriptions of a group are averaged as likelihoods."""
  rows, faces, anchors = np.flatnonzero(VALID), [], []
  x, y = z["image"], z["text"]
  for i in rows:
    others = [k for k in rows if k != i]
    positives = [
      p
      for p in others
      if GROUP[p] == GROUP[i] and not (subjects and SUBJECT[p] == SUBJECT[i])
    ]
    lse = np.log(sum(np.exp(x[i] @ x[k] / T) for k in others))
    if positives:
      faces.append(np.mean([lse - x[i] @ x[p] / T for p in positives]))
    groups = {}
    for k in rows:
      groups.setdefault(GROUP[k], []).append(np.exp(x[i] @ y[k] / T))
    means = {g: np.mean(v) for g, v in groups.items()}
    anchors.append(-np.log(means[GROUP[i]] / sum(means.values())))
  return np.mean(faces) + text * np.mean(anchors)


def run(loss, z, batch):
  f = jax.jit(jax.value_and_grad(lambda z, batch: loss({}, z, batch), has_aux=True))
  return jax.device_get(f(z, batch))


@pytest.mark.parametrize("subject", [None, "who"])
def test_value_and_slope_are_the_double_loop(subject):
  loss = clef.Loss(temperature=T, subject=subject, text=0.5)

  def want(z):
    return loop(z, subject is not None, 0.5)

  metrics = slopes.assert_is(loss, want, slopes.unit(B, D), BATCH)
  # Row 6 is alone in its group; rows 4 and 7 are of one subject, and so are 0 and 1,
  # who still have others of their group.
  np.testing.assert_allclose(metrics["clef/with_positive_image"], 6 / 7, rtol=1e-6)


def test_a_group_of_many_rows_has_one_description():
  """Repeating a row of one group changes no other row's softmax over descriptions."""
  z = slopes.unit(4, D)
  group = np.array([0, 1, 2, 3], np.int32)
  loss = clef.Loss(temperature=T)
  again = np.array([0, 1, 2, 3, 3, 3])
  more = {m: x[again] for m, x in z.items()}
  few = np.array([True] * 4 + [False] * 2)
  (_, one), _ = run(loss, more, {"label": group[again], "valid": few})
  (_, many), _ = run(loss, more, {"label": group[again]})
  own = {}
  for name, rows in (("one", range(4)), ("many", again)):
    s = z["image"] @ z["text"].T / T
    own[name] = np.mean([np.log(np.exp(s[i]).sum()) - s[i, i] for i in rows])
  np.testing.assert_allclose(one["clef/image_to_text"], own["one"], rtol=3e-6)
  np.testing.assert_allclose(many["clef/image_to_text"], own["many"], rtol=3e-6)


def test_the_anchors_of_groups_of_one_are_half_of_infonce():
  z, rows = slopes.unit(B, D), np.arange(B, dtype=np.int32)
  (_, metrics), _ = run(clef.Loss(), z, {"label": rows})
  (_, want), _ = run(infonce.Loss(learned=False), z, {})
  np.testing.assert_allclose(
    metrics["clef/image_to_text"], want["infonce/image_to_text"], rtol=3e-6
  )
  assert metrics["clef/image"] == 0 == metrics["clef/with_positive_image"]


@pytest.mark.parametrize("subject", [None, "who"])
@pytest.mark.parametrize("valid", [np.zeros(B, bool), np.arange(B) == 1])
def test_one_row_has_no_positive(valid, subject):
  loss = clef.Loss(subject=subject)
  (value, _), grad = run(loss, slopes.unit(B, D), {**BATCH, "valid": valid})
  assert value == 0 and all(np.all(g == 0) for g in grad.values())


@pytest.mark.parametrize(("key", "subject"), [("label", None), ("who", "who")])
def test_rows_of_no_label_are_left_out(key, subject):
  z, loss = slopes.unit(B, D), clef.Loss(temperature=T, subject=subject)
  unknown = np.isin(np.arange(B), (1, 5, 7))
  batch = {**BATCH, key: np.where(unknown, np.int32(-1), BATCH[key])}
  (value, metrics), grad = run(loss, z, batch)
  (want, others), slope = run(loss, z, {**BATCH, "valid": VALID & ~unknown})
  assert value == want and metrics == others
  for m in z:
    np.testing.assert_array_equal(grad[m], slope[m])
    assert np.all(grad[m][unknown] == 0) and np.any(grad[m] != 0)


def test_a_missing_group_is_named():
  with pytest.raises(ValueError, match=r"no 'activity' .*, only \['valid'\]"):
    clef.Loss(group="activity")({}, slopes.unit(B, D), {"valid": VALID})
  with pytest.raises(ValueError, match=r"temperature = 0\.0 must be above 0"):
    clef.Loss(temperature=0.0)
