"""Hard negatives against a double loop in f64, and the losses it contains."""

import numpy as np
import pytest

from model.losses import hard_negative, infonce
from tests.model.losses import loops

VALID = np.arange(loops.B) % 4 != 1


def one_way(x, y, scale, beta, tau_plus, ids=None):
  """As the paper writes it: importance weights, correction, floor."""
  rows = loops.rows_of(VALID)
  ids = np.arange(len(x)) if ids is None else ids
  total = []
  for i in rows:
    s = np.asarray([scale * (x[i] @ y[j]) for j in rows if ids[j] != ids[i]])
    own, n = np.exp(scale * (x[i] @ y[i])), len(s)
    weight = np.exp(beta * s) / np.mean(np.exp(beta * s))
    hard = np.sum(weight * np.exp(s))
    negatives = (hard - tau_plus * n * own) / (1 - tau_plus)
    total.append(np.log(1 + max(negatives, n * np.exp(-scale)) / own))
  return np.mean(total)


def loop(beta, tau_plus, **options):
  return loops.both_ways(
    lambda x, y, scale: one_way(x, y, scale or 5.0, beta, tau_plus, **options)
  )


@pytest.mark.parametrize(
  ("beta", "tau_plus", "learned"),
  [(1.0, 0.1, True), (2.0, 0.0, False), (0.0, 0.05, False)],
)
def test_value_and_gradient_are_the_double_loop(beta, tau_plus, learned):
  loss = hard_negative.Loss(
    temperature=0.2, beta=beta, tau_plus=tau_plus, learned=learned
  )
  scale = 5.0 if learned else None
  z, batch = loops.make(), {"valid": VALID}
  _, metrics = loops.check(loss, loop(beta, tau_plus), z, batch, scale)
  floored = metrics["hard_negative/floored_image_to_text"]
  assert 0 < floored < 1 if tau_plus else floored == 0  # both sides of the maximum


def test_without_both_it_is_infonce():
  z, batch = loops.make(2), {"valid": VALID}
  loss = hard_negative.Loss(temperature=0.1, beta=0.0, tau_plus=0.0)
  (value, _), (_, dz) = loops.evaluate(loss, z, batch)
  clip = infonce.Loss(temperature=0.1, learned=False)
  (want, _), (_, want_dz) = loops.evaluate(clip, z, batch)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  for m in z:
    np.testing.assert_allclose(dz[m], want_dz[m], rtol=1e-5, atol=1e-6)


def test_greater_beta_looks_at_the_hardest_negative():
  z = loops.make(3)
  rows = loops.rows_of(VALID)
  loss = hard_negative.Loss(temperature=0.2, beta=80.0, tau_plus=0.0)
  (value, _), _ = loops.evaluate(loss, z, {"valid": VALID})

  def hardest(x, y):
    s = [[5.0 * (x[i] @ y[j]) for j in rows if j != i] for i in rows]
    own = [5.0 * (x[i] @ y[i]) for i in rows]
    return np.mean([np.log1p(len(n) * np.exp(max(n) - p)) for n, p in zip(s, own)])

  np.testing.assert_allclose(value, loops.both_ways(hardest)(z), rtol=1e-2)


def test_a_scale_of_a_hundred_does_not_overflow():
  z = loops.make()
  loss = hard_negative.Loss(temperature=0.01, beta=2.0)
  (value, metrics), (_, dz) = loops.evaluate(loss, z | {"text": -z["image"]}, {})
  assert np.isfinite(value) and value > 100  # exp(300) is beyond f32
  assert all(np.isfinite(x).all() for x in (*metrics.values(), *dz.values()))


def test_negatives_of_the_same_id_can_be_left_out():
  z, ids = loops.make(4), np.arange(loops.B, dtype=np.int32) // 2
  loss = hard_negative.Loss(temperature=0.2, negatives="ids")
  loops.check(loss, loop(1.0, 0.1, ids=ids), z, {"valid": VALID, "id": ids})


@pytest.mark.parametrize("negatives", ["rows", "ids"])
@pytest.mark.parametrize("rows", [0, 1])
def test_without_a_negative_there_is_no_loss(rows, negatives):
  batch = {"valid": np.arange(loops.B) < rows, "id": np.zeros(loops.B, np.int32)}
  # Of padding, and of pairs opposed at t = 0.01, no exponential is left either.
  some = loops.make()
  nothing = {m: 0 * x for m, x in some.items()}
  opposed = some | {"text": -some["image"]}
  for z, temperature in ((some, 0.5), (nothing, 0.5), (nothing, 0.01), (opposed, 0.01)):
    loss = hard_negative.Loss(negatives=negatives, temperature=temperature)
    (value, metrics), grads = loops.evaluate(loss, z, batch)
    assert value == 0 and all(np.all(g == 0) for g in grads[1].values())
    assert all(np.isfinite(x) for x in metrics.values())


def test_rows_of_one_id_that_are_opposed_have_no_slope():
  z, ids = loops.make(), np.zeros(loops.B, np.int32)
  loss = hard_negative.Loss(negatives="ids", temperature=0.01, learned=True)
  out = loops.evaluate(loss, z | {"text": -z["image"]}, {"id": ids})
  (value, _), (slope, dz) = out
  assert value == 0 == slope["log_scale"]
  assert all(np.all(g == 0) for g in dz.values())


def test_options_that_make_no_sense():
  with pytest.raises(ValueError, match=r"beta = -1.0 must be at least 0"):
    hard_negative.Loss(beta=-1.0)
  with pytest.raises(ValueError, match=r"tau_plus = 1.0 in \[0, 1\)"):
    hard_negative.Loss(tau_plus=1.0)
