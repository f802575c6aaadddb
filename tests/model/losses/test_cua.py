"""CUA and CUAXU against their sums in f64."""

import jax
import numpy as np
import pytest

from model.losses import cua
from tests import slopes

B, D = 6, 4
VALID = np.arange(B) != 2


def uniformity(x, y, t):
  n = len(x)
  terms = [
    np.exp(-t * np.sum((x[i] - y[j]) ** 2))
    for i in range(n)
    for j in range(n)
    if i != j
  ]
  return np.log(np.mean(terms))


def loop(z, across, t=2.0, temperature=0.2):
  a, b = z["image"][VALID], z["text"][VALID]
  n, total = len(a), 0.0
  for x, y in ((a, b), (b, a)):
    for i in range(n):
      s = [x[i] @ y[j] / temperature for j in range(n)]
      total += (np.log(np.sum(np.exp(s))) - s[i]) / (2 * n)
  total += np.mean([np.sum((a[i] - b[i]) ** 2) for i in range(n)])
  total += (uniformity(a, a, t) + uniformity(b, b, t)) / 2
  return total + across * uniformity(a, b, t)


def run(loss, z, batch):
  f = jax.jit(jax.value_and_grad(lambda z, batch: loss({}, z, batch), has_aux=True))
  return jax.device_get(f(z, batch))


@pytest.mark.parametrize("across", [0.0, 1.0])
def test_value_and_slope_are_the_double_loop(across):
  loss = cua.Loss(temperature=0.2, across=across)
  z = slopes.unit(B, D)
  metrics = slopes.assert_is(loss, lambda z: loop(z, across), z, {"valid": VALID})
  assert ("cua/uniform_image_text" in metrics) == (across > 0)
  a = z["image"].astype(np.float64)[VALID]
  np.testing.assert_allclose(
    metrics["cua/uniform_image_image"], uniformity(a, a, 2.0), rtol=3e-6
  )


def test_uniformity_across_is_blind_to_pairs():
  """Turning both rows of a pair alike, away from all others, moves only that pair."""
  eye = np.eye(4, dtype=np.float32)
  one = {"image": eye[:3], "text": eye[:3]}
  two = {"image": eye[:3], "text": np.stack([eye[0], eye[1], eye[3]])}
  loss = cua.Loss(across=1.0)
  first, second = (run(loss, z, {})[0][1] for z in (one, two))
  assert first["cua/align_image_text"] == 0
  np.testing.assert_allclose(second["cua/align_image_text"], 2 / 3, rtol=1e-6)
  np.testing.assert_allclose(
    first["cua/uniform_image_text"], second["cua/uniform_image_text"], rtol=1e-6
  )


def test_several_pairs_are_averaged():
  z = slopes.unit(B, D, ("image", "text", "audio"))
  pairs = (("image", "text"), ("audio", "text"))
  (value, _), _ = run(cua.Loss(pairs=pairs, across=0.5), z, {})
  parts = [run(cua.Loss(pairs=(p,), across=0.5), z, {})[0][0] for p in pairs]
  np.testing.assert_allclose(value, np.mean(parts), rtol=1e-6)


@pytest.mark.parametrize("valid", [np.zeros(B, bool), np.arange(B) == 1])
def test_without_another_row_only_alignment_is_left(valid):
  z = slopes.unit(B, D)
  (value, _), grad = run(cua.Loss(across=1.0), z, {"valid": valid})
  gap = np.sum((z["image"] - z["text"])[valid] ** 2)
  np.testing.assert_allclose(value, gap, rtol=1e-6, atol=1e-5)
  assert all(np.isfinite(g).all() and np.all(g[~valid] == 0) for g in grad.values())


def test_options_that_make_no_sense():
  with pytest.raises(
    ValueError, match=r"temperature = 0\.0 and t = 2\.0 must be above 0"
  ):
    cua.Loss(temperature=0.0)
