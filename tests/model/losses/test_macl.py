"""MACL against a double loop in f64; its temperature, its weight, and its limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.losses import dcl, infonce, macl
from tests.model.losses import loops

VALID = np.arange(loops.B) % 4 != 1


def one_way(x, y, t, weights=None, ids=None):
  rows = loops.rows_of(VALID)
  ids = np.arange(len(x)) if ids is None else ids
  total = []
  for i in rows:
    own = x[i] @ y[i] / t
    kept = [x[i] @ y[j] / t for j in rows if ids[j] != ids[i]]
    surprise = loops.lse([own, *kept]) - own
    total.append(surprise / (1 - np.exp(-surprise)) if weights is None else surprise)
  return np.mean(total)


def temperature(z, alpha, alignment):
  a = np.mean(np.sum(z["image"].astype(np.float64) * z["text"], -1)[VALID])
  return 0.2 * (1 + alpha * (a - alignment))


def test_value_is_the_double_loop():
  z = loops.make()
  t = temperature(z, 0.5, 0.25)
  loss = macl.Loss(temperature=0.2, alpha=0.5, alignment=0.25)
  (value, metrics), _ = loops.evaluate(loss, z, {"valid": VALID})
  want = loops.both_ways(lambda x, y: one_way(x, y, t))(z)
  np.testing.assert_allclose(value, want, rtol=3e-6)
  np.testing.assert_allclose(metrics["macl/temperature_image_text"], t, rtol=1e-6)


def test_without_the_weight_the_gradient_is_the_loops_slope():
  z = loops.make()
  t = temperature(z, 0.5, 0.0)  # held still: it has no gradient
  loop = loops.both_ways(lambda x, y, scale: one_way(x, y, t, weights=False))
  loss = macl.Loss(temperature=0.2, reweight=False)
  loops.check(loss, loop, z, {"valid": VALID})


def test_with_the_weight_the_gradient_is_that_of_dcl():
  z, batch = loops.make(1), {"valid": VALID}
  _, (_, dz) = loops.evaluate(macl.Loss(alpha=0.0), z, batch)
  _, (_, want) = loops.evaluate(dcl.Loss(temperature=0.1), z, batch)
  for m in z:
    np.testing.assert_allclose(dz[m], want[m], rtol=1e-5, atol=1e-6)


def test_without_both_it_is_infonce():
  z, batch = loops.make(2), {"valid": VALID}
  (value, _), (_, dz) = loops.evaluate(macl.Loss(alpha=0.0, reweight=False), z, batch)
  clip = infonce.Loss(temperature=0.1, learned=False)
  (want, _), (_, want_dz) = loops.evaluate(clip, z, batch)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  for m in z:
    np.testing.assert_allclose(dz[m], want_dz[m], rtol=1e-5, atol=1e-6)


def test_temperature_rises_with_the_alignment():
  z = loops.make()
  seen = []
  for share in (-1.0, 0.0, 1.0):
    text = share * z["image"] if share else z["text"]
    (_, metrics), _ = loops.evaluate(macl.Loss(), z | {"text": text}, {})
    seen.append(float(metrics["macl/temperature_image_text"]))
  assert seen == sorted(seen) and seen[0] == pytest.approx(0.05, rel=1e-5)
  assert seen[-1] == pytest.approx(0.15, rel=1e-5)
  opposed = z | {"text": -z["image"]}
  (_, metrics), _ = loops.evaluate(macl.Loss(alpha=1.0), opposed, {})
  assert metrics["macl/temperature_image_text"] == pytest.approx(0.01)  # the bound


def test_the_limit_of_a_sure_positive_is_one_with_a_slope():
  # The released form divides 0 by 0 here. Slope 1 by the margin: DCL's.
  x = jnp.asarray([-500.0, -90.0, -40.0, -15.1, -14.9, 0.0, 30.0, 500.0], jnp.float32)
  value, slope = jax.vmap(jax.value_and_grad(macl.reweighted))(x)
  exact = np.asarray(x, np.float64)
  want = np.ones(8)
  want[3:] = np.logaddexp(0, exact[3:]) * (1 + np.exp(-exact[3:]))
  np.testing.assert_allclose(value, want, rtol=1e-6)
  np.testing.assert_array_equal(slope, 1)


@pytest.mark.parametrize("reweight", [True, False])
@pytest.mark.parametrize("rows", [0, 1])
def test_without_a_negative_there_is_no_loss(rows, reweight):
  valid = np.arange(loops.B) < rows
  loss = macl.Loss(reweight=reweight)
  (value, metrics), grads = loops.evaluate(loss, loops.make(), {"valid": valid})
  assert value == 0 and all(np.all(g == 0) for g in grads[1].values())
  assert all(np.isfinite(x) for x in metrics.values())


def test_negatives_of_the_same_id_can_be_left_out():
  z, ids = loops.make(4), np.arange(loops.B, dtype=np.int32) // 2
  t = temperature(z, 0.5, 0.0)
  want = loops.both_ways(lambda x, y: one_way(x, y, t, ids=ids))(z)
  loss = macl.Loss(temperature=0.2, negatives="ids")
  (value, _), _ = loops.evaluate(loss, z, {"valid": VALID, "id": ids})
  # Rows 0 and 8 have partners that are not valid; no row is without negatives.
  np.testing.assert_allclose(value, want, rtol=3e-6)


def test_options_that_make_no_sense():
  with pytest.raises(ValueError, match=r"alpha = 1.5 must be in \[0, 1\]"):
    macl.Loss(alpha=1.5)
  with pytest.raises(ValueError, match=r"alignment = 1\.0 in"):
    macl.Loss(alignment=1.0)
