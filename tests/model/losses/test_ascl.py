"""ASCL against a double loop in f64: soft, nearest and one target; its confidence."""

import numpy as np
import pytest

from model.losses import ascl, infonce
from tests.model.losses import loops

VALID = np.arange(loops.B) % 4 != 1
KEYS = {m: x.astype(np.float64) for m, x in loops.make().items()}
T2 = 0.4


def target_of(keys, i, rows, neighbours, kind):
  """y of row i as {j: y_ij}, and its confidence, from keys that are held still."""
  others = [j for j in rows if j != i]
  logits = np.asarray([keys[i] @ keys[j] / T2 for j in others])
  p = np.exp(logits - loops.lse(logits))
  c = 1 + np.sum(p * np.log(p)) / np.log(len(others))
  if kind == "soft":
    y = {j: min(1.0, neighbours * c * x) for j, x in zip(others, p)}
  else:
    near = np.argsort(-p)[:neighbours]
    y = {others[j]: (1.0 if kind == "hard" else c) for j in near}
  return {i: 1.0} | y, c


def one_way(x, y, keys, neighbours, kind):
  rows, total = loops.rows_of(VALID), []
  for i in rows:
    s = {j: x[i] @ y[j] / 0.2 for j in rows}
    w, _ = target_of(keys, i, rows, neighbours, kind)
    target = sum(w[j] * s[j] for j in w) / sum(w.values())
    total.append(loops.lse(list(s.values())) - target)
  return np.mean(total)


@pytest.mark.parametrize(
  ("kind", "neighbours"), [("soft", 1), ("soft", 5), ("hard", 2), ("top", 3)]
)
def test_value_and_gradient_are_the_double_loop(kind, neighbours):
  def loop(z, scale):
    a, b = z["image"], z["text"]
    forth = one_way(a, b, KEYS["text"], neighbours, kind)
    return (forth + one_way(b, a, KEYS["image"], neighbours, kind)) / 2

  loss = ascl.Loss(
    temperature=0.2, key_temperature=T2, neighbours=neighbours, targets=kind
  )
  _, metrics = loops.check(loss, loop, loops.make(), {"valid": VALID})
  rows = loops.rows_of(VALID)
  both = [target_of(KEYS["text"], i, rows, neighbours, kind) for i in rows]
  c, count = np.mean([c for _, c in both]), np.mean([sum(y.values()) for y, _ in both])
  np.testing.assert_allclose(metrics["ascl/confidence_text"], c, rtol=1e-5)
  np.testing.assert_allclose(metrics["ascl/targets_image_to_text"], count, rtol=1e-5)


def test_one_target_is_infonce():
  z, batch = loops.make(), {"valid": VALID}
  (value, _), (_, dz) = loops.evaluate(ascl.Loss(targets="one"), z, batch)
  clip = infonce.Loss(temperature=0.1, learned=False)
  (want, _), (_, want_dz) = loops.evaluate(clip, z, batch)
  assert value == want
  for m in z:
    np.testing.assert_allclose(dz[m], want_dz[m], rtol=1e-6)


def test_keys_that_are_all_alike_have_no_confidence():
  z = loops.make(d=16, b=16)
  z["text"] = np.eye(16, dtype=np.float32)
  z["image"] = z["text"][::-1].copy()
  (value, metrics), _ = loops.evaluate(ascl.Loss(), z, {})
  clip = infonce.Loss(temperature=0.1, learned=False)
  (want, _), _ = loops.evaluate(clip, z, {})
  assert metrics["ascl/confidence_text"] < 1e-5
  np.testing.assert_allclose(value, want, rtol=1e-5)


def test_a_duplicate_key_is_a_sure_target():
  z = loops.make(d=16, b=16)
  eye = np.eye(16, dtype=np.float32)
  eye[1::2] = eye[::2]  # every key twice
  z["text"] = eye
  (_, metrics), _ = loops.evaluate(ascl.Loss(), z, {})
  assert metrics["ascl/confidence_text"] > 0.99
  np.testing.assert_allclose(metrics["ascl/targets_image_to_text"], 2, rtol=1e-2)


def test_more_neighbours_than_rows():
  z = loops.make()
  for kind in ("hard", "top"):
    loss = ascl.Loss(targets=kind, neighbours=50)
    (value, metrics), _ = loops.evaluate(loss, z, {"valid": VALID})
    assert np.isfinite(value)
    if kind == "hard":
      count = metrics["ascl/targets_image_to_text"]
      np.testing.assert_allclose(count, VALID.sum(), rtol=1e-6)


@pytest.mark.parametrize("rows", [0, 1, 2])
@pytest.mark.parametrize("kind", ascl.TARGETS)
def test_few_rows(rows, kind):
  batch = {"valid": np.arange(loops.B) < rows}
  loss = ascl.Loss(targets=kind)
  (value, metrics), (_, dz) = loops.evaluate(loss, loops.make(), batch)
  assert np.isfinite(value) and (rows == 2 or abs(value) < 1e-6)
  assert all(np.isfinite(x) for x in metrics.values())
  assert all(np.isfinite(x).all() for x in dz.values())


def test_options_that_make_no_sense():
  with pytest.raises(ValueError, match=r"targets = 'moco' must be one of"):
    ascl.Loss(targets="moco")
  with pytest.raises(ValueError, match="neighbours = 0 must be at least 1"):
    ascl.Loss(neighbours=0)
