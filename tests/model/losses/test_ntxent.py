"""NT-Xent against a double loop over all views, and against its kin."""

import numpy as np
import pytest

from model.losses import kernel_infonce, ntxent, supcon
from tests.model.losses import loops

VALID = np.arange(loops.B) % 4 != 1
T = 0.2


def loop(z, valid):
  """Over the 2b views in one list, as the paper writes it."""
  rows = loops.rows_of(valid)
  views = [z["image"][i] for i in rows] + [z["text"][i] for i in rows]
  n, total = len(rows), []
  for i, v in enumerate(views):
    scores = [v @ w / T for w in views]
    others = [s for j, s in enumerate(scores) if j != i]
    total.append(loops.lse(others) - scores[(i + n) % (2 * n)])
  return np.mean(total)


@pytest.mark.parametrize("valid", [VALID, np.arange(loops.B) < 3], ids=["some", "3"])
def test_value_and_gradient_are_the_double_loop(valid):
  z = loops.make()
  loss = ntxent.Loss(temperature=T)
  _, metrics = loops.check(loss, lambda z, s: loop(z, valid), z, {"valid": valid})
  want = np.sum(z["image"] * z["text"], axis=1)[valid].mean()
  np.testing.assert_allclose(metrics["ntxent/positive_image_text"], want, rtol=1e-5)


@pytest.mark.parametrize(
  ("kin", "batch"),
  [
    (
      supcon.Loss(temperature=T, learned=False, intra=True),
      {"id": np.arange(loops.B, dtype=np.int32)},
    ),
    (kernel_infonce.Loss(gamma=2.0, temperature=2 * T, within=True), {}),
  ],
  ids=["unlabelled supcon", "gaussian kernel at 2 t"],
)
def test_is_what_its_kin_come_down_to(kin, batch):
  z, batch = loops.make(1), {"valid": VALID, **batch}
  (value, _), (_, dz) = loops.evaluate(ntxent.Loss(temperature=T), z, batch)
  (want, _), (_, want_dz) = loops.evaluate(kin, z, batch)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  for m in z:
    got, want = (_along_the_sphere(g[m], z[m]) for g in (dz, want_dz))
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


def _along_the_sphere(g, x):
  """Of views at unit norm, a slope by the norm means nothing."""
  return g - np.sum(g * x, axis=1, keepdims=True) * x


def test_of_random_views_is_nearly_that_of_chance():
  b = 64
  rng = np.random.default_rng(0)
  z = {m: rng.normal(size=(b, 128)) for m in ("image", "text")}
  z = {
    m: (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    for m, x in z.items()
  }
  (value, _), _ = loops.evaluate(ntxent.Loss(temperature=1.0), z, {})
  assert abs(value - np.log(2 * b - 1)) < 0.05


@pytest.mark.parametrize("rows", [0, 1])
def test_one_row_or_none_has_no_loss(rows):
  batch = {"valid": np.arange(loops.B) < rows}
  (value, metrics), (_, dz) = loops.evaluate(ntxent.Loss(), loops.make(), batch)
  assert value == pytest.approx(0, abs=1e-6)
  assert all(np.abs(g).max() < 1e-6 for g in dz.values())
  assert all(np.isfinite(x) for x in metrics.values())


def test_errors():
  with pytest.raises(ValueError, match="temperature = 0"):
    ntxent.Loss(temperature=0)
