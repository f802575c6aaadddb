"""AMCL against a double loop in f64: heads, temperatures and their regulariser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.losses import amcl, infonce
from tests.model.losses import loops

VALID = np.arange(loops.B) % 4 != 1
SLOPE = np.asarray([[-2.0, 1.0], [0.5, 0.0]])
OFFSET = np.asarray([[-1.0, 0.5], [-3.0, -2.0]])
PARAMS = {"slope": jnp.float32(SLOPE), "offset": jnp.float32(OFFSET)}


def loop(z, slope=SLOPE, offset=OFFSET, *, beta=0.3, combine="product"):
  rows = loops.rows_of(VALID)
  d = z["image"].shape[1] // 2
  heads = {}
  for m, x in z.items():
    x = x.reshape(len(x), 2, d)
    heads[m] = x / np.linalg.norm(x, axis=-1, keepdims=True)
  logit, near, far = {}, [], []
  for i in rows:
    for j in rows:
      for m in range(2):
        s = heads["image"][i, m] @ heads["text"][j, m]
        kind = int(i != j)
        share = 1 / (1 + np.exp(-slope[kind, m] * s - offset[kind, m]))
        t = 0.01 + (2.0 - 0.01) * share
        logit[m, i, j] = s / t
        (far if kind else near).append(d / 2 * np.log(t) + 1 / t)
  if combine == "product":
    logit = {(0, i, j): logit[0, i, j] + logit[1, i, j] for i in rows for j in rows}
  terms = []
  for m in range(1 if combine == "product" else 2):
    for i in rows:
      terms.append(loops.lse([logit[m, i, j] for j in rows]) - logit[m, i, i])
      terms.append(loops.lse([logit[m, j, i] for j in rows]) - logit[m, i, i])
  return np.mean(terms) + beta * (np.mean(near) + np.mean(far)) / 2


@pytest.mark.parametrize("combine", amcl.COMBINE)
def test_value_and_gradient_are_the_double_loop(combine):
  z = loops.make()
  loss = amcl.Loss(heads=2, beta=0.3, combine=combine)
  (value, _), (grads, dz) = loops.evaluate(loss, z, {"valid": VALID}, PARAMS)
  exact = {m: x.astype(np.float64) for m, x in z.items()}
  np.testing.assert_allclose(value, loop(exact, combine=combine), rtol=3e-6)
  h = 1e-5
  for name, at, place in (
    ("slope", SLOPE, (0, 1)),
    ("slope", SLOPE, (1, 0)),
    ("offset", OFFSET, (0, 0)),
    ("offset", OFFSET, (1, 1)),
  ):
    step = np.zeros_like(at)
    step[place] = h
    ahead, behind = (
      loop(exact, **{name: at + s}, combine=combine) for s in (step, -step)
    )
    want = (ahead - behind) / (2 * h)
    np.testing.assert_allclose(grads[name][place], want, rtol=2e-5, atol=2e-6)
  for m, place in (("image", (2, 1)), ("text", (4, 3)), ("image", (8, 2))):
    step = np.zeros_like(exact[m])
    step[place] = h
    ahead, behind = (
      loop(exact | {m: exact[m] + s}, combine=combine) for s in (step, -step)
    )
    want = (ahead - behind) / (2 * h)
    np.testing.assert_allclose(dz[m][place], want, rtol=2e-5, atol=2e-6)


def test_one_head_that_does_not_adapt_is_infonce():
  z, batch = loops.make(), {"valid": VALID}
  loss = amcl.Loss(heads=1, temperature=0.1, adaptive=False, beta=0.0)
  (value, _), (_, dz) = loops.evaluate(loss, z, batch)
  clip = infonce.Loss(temperature=0.1, learned=False)
  (want, _), (_, want_dz) = loops.evaluate(clip, z, batch)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  for m, x in z.items():  # the head's own norm takes the radial part away
    radial = np.sum(want_dz[m] * x, -1, keepdims=True) * x
    np.testing.assert_allclose(dz[m], want_dz[m] - radial, rtol=2e-5, atol=2e-6)


def test_all_temperatures_start_as_told_and_keep_their_bounds():
  z, loss = loops.make(), amcl.Loss(heads=2, temperature=0.25)
  (_, metrics), _ = loops.evaluate(loss, z, {})
  for kind in ("positive", "negative"):
    name = f"amcl/temperature_{kind}_image_text"
    assert metrics[name] == pytest.approx(0.25, rel=1e-5)
  far = jax.tree.map(lambda x: x * 0 + 1000.0, PARAMS)
  (_, metrics), _ = loops.evaluate(loss, z | {"text": z["image"]}, {}, far)
  assert metrics["amcl/temperature_positive_image_text"] == pytest.approx(2.0)


def test_the_regulariser_keeps_the_temperature_from_its_bound():
  """d/2 log t + 1/t is least at t = 2/d; without it, hard positives heat up to high."""
  z = loops.make()
  z["text"] = -z["image"]  # no temperature makes these positives near: only forgiven
  found = {}
  for beta in (0.0, 10.0):
    loss = amcl.Loss(heads=1, beta=beta)
    params = loss.init(jax.random.key(0))
    step = jax.jit(jax.grad(lambda p, loss=loss: loss(p, z, {})[0]))
    for _ in range(300):
      params = jax.tree.map(
        lambda p, g: p - jnp.float32(0.05) * g, params, step(params)
      )
    found[beta] = loss(params, z, {})[1]["amcl/temperature_positive_image_text"]
  assert found[0.0] > 1.5
  assert 0.45 < found[10.0] < 0.7


@pytest.mark.parametrize("rows", [0, 1])
def test_one_row_or_none_has_only_the_regulariser(rows):
  batch = {"valid": np.arange(loops.B) < rows}
  (value, metrics), (grads, dz) = loops.evaluate(
    amcl.Loss(heads=2, beta=0.0), loops.make(), batch
  )
  assert abs(value) < 1e-5 and all(np.isfinite(x) for x in metrics.values())
  assert all(np.isfinite(x).all() for x in (*grads.values(), *dz.values()))


def test_errors():
  message = r"4 dimensions cannot be split over heads = 3 \(4 % 3 = 1\)"
  with pytest.raises(ValueError, match=message):
    amcl.Loss(heads=3, adaptive=False)({}, loops.make(), {})
  with pytest.raises(ValueError, match="must rise from above 0"):
    amcl.Loss(low=0.5)
  with pytest.raises(ValueError, match=r"combine = 'max' one of"):
    amcl.Loss(combine="max")
