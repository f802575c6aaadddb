"""DCL against a double loop in f64, its weights, and what ties it to InfoNCE."""

import numpy as np
import pytest

from model.losses import dcl, infonce
from tests.model.losses import loops

VALID = np.arange(loops.B) % 4 != 1
T = 0.2


def one_way(x, y, *, valid=VALID, sigma=None, weights=None, intra=False, ids=None):
  rows = loops.rows_of(valid)
  ids = np.arange(len(x)) if ids is None else ids
  easy = {i: np.exp(x[i] @ y[i] / sigma) for i in rows} if sigma else {}
  total = []
  for i in rows:
    others = [x[i] @ y[j] / T for j in rows if ids[j] != ids[i]]
    others += [x[i] @ x[j] / T for j in rows if ids[j] != ids[i] and intra]
    w = 2 - easy[i] / np.mean(list(easy.values())) if sigma else 1.0
    w = w if weights is None else weights[i]
    if others:
      total.append(loops.lse(others) - w * (x[i] @ y[i]) / T)
  return np.mean(total) if total else 0.0


def loop(**options):
  return loops.both_ways(lambda x, y, scale: one_way(x, y, **options))


@pytest.mark.parametrize("intra", [False, True])
def test_value_and_gradient_are_the_double_loop(intra):
  z = loops.make()
  loss = dcl.Loss(temperature=T, intra=intra)
  value, metrics = loops.check(loss, loop(intra=intra), z, {"valid": VALID})
  forth = one_way(z["image"], z["text"], intra=intra)
  np.testing.assert_allclose(metrics["dcl/image_to_text"], forth, rtol=3e-6)
  assert value != forth


def test_weights_have_mean_one_and_no_gradient():
  z = loops.make(1)
  a, b = (z[m].astype(np.float64) for m in ("image", "text"))
  easy = np.exp(np.sum(a * b, -1) / 0.5)
  weights = 2 - easy / np.mean(easy[VALID])
  np.testing.assert_allclose(np.mean(weights[VALID]), 1)
  loss = dcl.Loss(temperature=T, sigma=0.5)
  # A widely used implementation differentiates them: this loop holds them still.
  value, _ = loops.check(loss, loop(weights=weights), z, {"valid": VALID})
  np.testing.assert_allclose(value, loop(sigma=0.5)(z, None), rtol=3e-6)


def test_infonce_gradient_is_the_coupling_times_dcl():
  z, batch = loops.make(2), {"valid": np.arange(loops.B) < 1}
  batch["valid"] = np.arange(loops.B) < 2  # one negative: rows can be told apart
  _, (_, dz) = loops.evaluate(dcl.Loss(temperature=T), z, batch)
  _, (_, clip) = loops.evaluate(infonce.Loss(temperature=T, learned=False), z, batch)
  # By hand, for the terms of row 0 with everything else held still.
  a, b = (z[m].astype(np.float64) for m in ("image", "text"))
  q = 1 / (1 + np.exp((a[0] @ b[0] - a[0] @ b[1]) / T))
  other = {}
  for name, share in (("dcl", 1.0), ("clip", q)):
    row = share * (b[1] - b[0]) / T / 4  # image 0 as the anchor
    near = 1 / (1 + np.exp((a[0] @ b[0] - a[1] @ b[0]) / T))
    far = 1 / (1 + np.exp((a[1] @ b[1] - a[0] @ b[1]) / T))
    near, far = (near, far) if name == "clip" else (1.0, 1.0)
    other[name] = row + (-near * b[0] + far * b[1]) / T / 4  # texts 0, 1 as anchors
  np.testing.assert_allclose(dz["image"][0], other["dcl"], rtol=2e-5, atol=1e-6)
  np.testing.assert_allclose(clip["image"][0], other["clip"], rtol=2e-5, atol=1e-6)


def test_coupling_is_the_mean_of_one_minus_the_probability_of_the_positive():
  z = loops.make(3)
  (_, metrics), _ = loops.evaluate(dcl.Loss(temperature=T), z, {})
  s = z["image"].astype(np.float64) @ z["text"].T / T
  q = [1 - np.exp(s[i, i] - loops.lse(s[i])) for i in range(loops.B)]
  np.testing.assert_allclose(
    metrics["dcl/coupling_image_to_text"], np.mean(q), rtol=1e-5
  )


def test_negatives_of_the_same_id_can_be_left_out():
  z, ids = loops.make(4), np.arange(loops.B, dtype=np.int32) // 2
  loss = dcl.Loss(temperature=T, negatives="ids")
  loops.check(loss, loop(ids=ids), z, {"valid": VALID, "id": ids})
  with pytest.raises(ValueError, match=r'by batch\["id"\], i32\[b\]; got \[\]'):
    loss({}, z, {})


@pytest.mark.parametrize("rows", [0, 1])
def test_without_a_negative_there_is_no_loss(rows):
  valid = np.arange(loops.B) < rows
  for loss in (dcl.Loss(sigma=0.5), dcl.Loss(intra=True, learned=True)):
    (value, metrics), grads = loops.evaluate(loss, loops.make(), {"valid": valid})
    assert value == 0 and all(np.all(g == 0) for g in grads[1].values())
    assert all(np.isfinite(x) for x in metrics.values())


def test_options_that_make_no_sense():
  with pytest.raises(ValueError, match=r"sigma = 0.0 must be above 0"):
    dcl.Loss(sigma=0.0)
  with pytest.raises(ValueError, match=r"negatives = 'id' must be one of"):
    dcl.Loss(negatives="id")
  with pytest.raises(ValueError, match="at least 1 / max_scale"):
    dcl.Loss(temperature=0.001)
