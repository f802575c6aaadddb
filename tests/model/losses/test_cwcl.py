"""CWCL against a double loop in f64: kernels, sides, and the hot target it contains."""

import numpy as np
import pytest

from model.losses import cwcl, infonce
from tests.model.losses import loops

VALID = np.arange(loops.B) % 4 != 1
FROZEN = loops.make()["image"].astype(np.float64)


def kernel(c, kind):
  return (c + 1) / 2 if kind == "affine" else np.exp((c - 1) / 0.1)


def weights(kind):
  """Held still: they have no gradient by q."""
  return kernel(FROZEN @ FROZEN.T, kind)


def one_way(x, y, scale, w=None):
  rows, total = loops.rows_of(VALID), []
  for i in rows:
    s = {j: scale * (x[i] @ y[j]) for j in rows}
    target = s[i]
    if w is not None:
      target = sum(w[i, j] * s[j] for j in rows) / sum(w[i, j] for j in rows)
    total.append(loops.lse(list(s.values())) - target)
  return np.mean(total)


@pytest.mark.parametrize(
  ("kind", "soft"), [("affine", "trained"), ("exp", "trained"), ("exp", "both")]
)
def test_value_and_gradient_are_the_double_loop(kind, soft):
  def loop(z, scale):
    q, p = z["image"], z["text"]
    back = one_way(q, p, scale, weights(kind) if soft == "both" else None)
    return (one_way(p, q, scale, weights(kind)) + back) / 2

  loss = cwcl.Loss(temperature=0.2, kernel=kind, soft=soft)
  _, metrics = loops.check(loss, loop, loops.make(), {"valid": VALID}, 5.0)
  w = weights(kind)[np.ix_(VALID, VALID)]
  w = w / w.sum(1, keepdims=True)
  spread = np.mean(np.exp(-np.sum(w * np.log(w), 1)))
  np.testing.assert_allclose(
    metrics["cwcl/effective_positives_image"], spread, rtol=1e-5
  )


def test_the_frozen_side_may_have_the_soft_rows():
  loss = cwcl.Loss(temperature=0.2, soft="frozen")
  z = loops.make()
  _, metrics = loops.evaluate(loss, z, {"valid": VALID})[0]
  want = one_way(FROZEN, z["text"].astype(np.float64), 5.0, weights("affine"))
  np.testing.assert_allclose(metrics["cwcl/image_to_text"], want, rtol=3e-6)
  want = one_way(z["text"].astype(np.float64), FROZEN, 5.0)
  np.testing.assert_allclose(metrics["cwcl/text_to_image"], want, rtol=3e-6)


def test_a_kernel_that_knows_only_itself_is_infonce():
  z, batch = loops.make(), {"valid": VALID}
  loss = cwcl.Loss(kernel="exp", width=1e-3)
  (value, metrics), (_, dz) = loops.evaluate(loss, z, batch)
  (want, _), (_, want_dz) = loops.evaluate(infonce.Loss(), z, batch)
  np.testing.assert_allclose(value, want, rtol=1e-6)
  for m in z:
    np.testing.assert_allclose(dz[m], want_dz[m], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(metrics["cwcl/effective_positives_image"], 1, rtol=1e-5)


@pytest.mark.parametrize("strategy", ["dense", "tiled"])
def test_what_rows_hold_that_do_not_count_may_overflow_the_kernel(strategy):
  loss = cwcl.Loss(kernel="exp", soft="both", strategy=strategy, tile=4)
  z = loops.make()
  (want, _), (slope, want_dz) = loops.evaluate(loss, z, {"valid": VALID})
  z = {m: np.where(VALID[:, None], x, 50 * x) for m, x in z.items()}
  (value, metrics), (grads, dz) = loops.evaluate(loss, z, {"valid": VALID})
  assert value == want and all(np.isfinite(x) for x in metrics.values())
  np.testing.assert_allclose(grads["log_scale"], slope["log_scale"], rtol=1e-6)
  for m in z:
    np.testing.assert_allclose(dz[m], want_dz[m], rtol=1e-6, atol=1e-8)


def test_affine_weights_of_cosines_near_zero_are_nearly_uniform():
  """The row's own trap: why effective_positives is always reported."""
  z = loops.make(b=64, d=256)
  rng = np.random.default_rng(1)
  q = rng.normal(size=(64, 256)).astype(np.float32)
  z["image"] = q / np.linalg.norm(q, axis=-1, keepdims=True)
  flat, sharp = (
    loops.evaluate(cwcl.Loss(kernel=k), z, {})[0][1]["cwcl/effective_positives_image"]
    for k in cwcl.KERNELS
  )
  assert flat > 60 and sharp < 2


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("kind", cwcl.KERNELS)
def test_one_row_or_none_has_no_loss(rows, kind):
  batch = {"valid": np.arange(loops.B) < rows}
  (value, metrics), (_, dz) = loops.evaluate(
    cwcl.Loss(kernel=kind), loops.make(), batch
  )
  assert abs(value) < 1e-6 and all(np.isfinite(x) for x in metrics.values())
  assert all(np.abs(x).max() < 1e-5 for x in dz.values())


def test_duplicates_share_the_target():
  z = {m: np.repeat(x[:1], 4, axis=0) for m, x in loops.make().items()}
  (value, metrics), _ = loops.evaluate(cwcl.Loss(), z, {})
  np.testing.assert_allclose(value, np.log(4), rtol=1e-5)
  np.testing.assert_allclose(metrics["cwcl/effective_positives_image"], 4, rtol=1e-5)


def test_options_that_make_no_sense():
  with pytest.raises(ValueError, match=r"kernel = 'rbf' must be one of"):
    cwcl.Loss(kernel="rbf")
  with pytest.raises(ValueError, match=r"soft = 'v2u' one of"):
    cwcl.Loss(soft="v2u")
  with pytest.raises(ValueError, match=r"width = 0 must be above 0"):
    cwcl.Loss(width=0)
