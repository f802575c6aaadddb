"""InfoNCE against a double loop in f64, its options, and its temperature."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.losses import infonce, scale

B, D = 12, 8


def make(seed=0, modalities=("image", "text")):
  rng = np.random.default_rng(seed)
  z = {m: rng.normal(size=(B, D)) for m in modalities}
  return {
    m: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    for m, x in z.items()
  }


def loop(a, b, temperature, valid, smoothing=0.0):
  """Mean over valid rows of one direction's cross-entropy, one pair at a time."""
  rows = [i for i in range(len(a)) if valid[i]]
  total = 0.0
  for i in rows:
    s = {j: float(a[i].astype(np.float64) @ b[j]) / temperature for j in rows}
    top = max(s.values())
    lse = top + np.log(sum(np.exp(x - top) for x in s.values()))
    for j in rows:
      target = (1 - smoothing) * (i == j) + smoothing / len(rows)
      total += target * (lse - s[j])
  return total / len(rows)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_value_is_the_double_loop(smoothing):
  z, valid = make(), np.arange(B) % 4 != 1
  loss = infonce.Loss(temperature=0.05, label_smoothing=smoothing)
  value, metrics = loss(loss.init(jax.random.key(0)), z, {"valid": valid})
  a, b = z["image"], z["text"]
  forth, back = (loop(x, y, 0.05, valid, smoothing) for x, y in ((a, b), (b, a)))
  np.testing.assert_allclose(value, (forth + back) / 2, rtol=3e-6)
  np.testing.assert_allclose(metrics["infonce/image_to_text"], forth, rtol=3e-6)
  np.testing.assert_allclose(metrics["infonce/text_to_image"], back, rtol=3e-6)
  np.testing.assert_allclose(metrics["infonce/temperature"], 0.05, rtol=1e-6)
  similarity = np.mean(np.sum(a * b, -1)[valid])
  np.testing.assert_allclose(
    metrics["infonce/positive_image_text"], similarity, rtol=1e-5
  )


def test_gradient_is_the_loops_slope():
  z = make()
  loss = infonce.Loss(temperature=0.2)
  params = loss.init(jax.random.key(0))
  grad = jax.grad(lambda p, z: loss(p, z, {})[0], argnums=(0, 1))(params, z)
  every = np.ones(B, bool)

  def both(log_scale, a):
    t = np.exp(-log_scale)
    return (loop(a, z["text"], t, every) + loop(z["text"], a, t, every)) / 2

  at, h = np.log(5.0), 1e-5
  a = z["image"].astype(np.float64)
  want = (both(at + h, a) - both(at - h, a)) / (2 * h)
  np.testing.assert_allclose(grad[0]["log_scale"], want, rtol=2e-6)
  step = np.zeros_like(a)
  step[3, 2] = h
  want = (both(at, a + step) - both(at, a - step)) / (2 * h)
  np.testing.assert_allclose(grad[1]["image"][3, 2], want, rtol=1e-5)


def test_several_pairs_are_averaged():
  z = make(modalities=("image", "text", "audio"))
  pairs = (("image", "text"), ("audio", "text"))
  value, metrics = infonce.Loss(pairs=pairs, learned=False)({}, z, {})
  parts = [infonce.Loss(pairs=(p,), learned=False)({}, z, {})[0] for p in pairs]
  np.testing.assert_allclose(value, np.mean(parts), rtol=1e-6)
  assert "infonce/text_to_audio" in metrics


def test_all_pairs_of_many_modalities_in_any_order():
  """N-pairwise contrast, of any number of modalities, is an option and not a loss."""
  modalities = ("image", "text", "audio", "depth")
  z, valid = make(modalities=modalities), np.arange(B) % 4 != 1
  want = [
    loop(z[a], z[b], 0.07, valid)
    for a, b in itertools.permutations(modalities, 2)  # both directions of each pair
  ]
  for names in (modalities, modalities[::-1]):
    loss = infonce.Loss(pairs=tuple(itertools.combinations(names, 2)), learned=False)
    value, metrics = loss({}, z, {"valid": valid})
    np.testing.assert_allclose(value, np.mean(want), rtol=3e-6)
    assert sum("_to_" in key for key in metrics) == 12


def test_fixed_temperature_has_no_parameter():
  assert infonce.Loss(learned=False).init(jax.random.key(0)) == {}


def test_temperature_is_bounded_and_can_come_back():
  loss, z = infonce.Loss(max_scale=20.0), make()

  def at(log_scale, z=z):
    params = {"log_scale": jnp.float32(log_scale)}
    (_, metrics), grad = jax.value_and_grad(lambda p: loss(p, z, {}), has_aux=True)(
      params
    )
    return float(metrics["infonce/temperature"]), float(grad["log_scale"])

  temperature, slope = at(np.log(30.0))
  assert temperature == pytest.approx(1 / 20, rel=1e-6)
  assert slope > 0  # random pairs: a smaller scale is better, descent leads back
  # Perfect pairs: a greater scale is better, and is held back at the bound.
  perfect = {"image": z["image"], "text": z["image"]}
  assert at(np.log(30.0), perfect)[1] == 0
  assert at(np.log(10.0), perfect)[1] < 0
  assert at(np.log(10.0))[0] == pytest.approx(1 / 10, rel=1e-6)


def test_scale_below_the_bound_is_exact():
  got = scale.positive(scale.initial(14.0), 100.0)
  np.testing.assert_allclose(got, 14.0, rtol=1e-6)
  assert got.dtype == jnp.float32


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(temperature=0.001), "at least 1 / max_scale"),
    (dict(label_smoothing=1.0), r"label_smoothing = 1.0 must be in \[0, 1\)"),
    (dict(pairs=("image", "text")), "pairs = .* must be pairs of modality names"),
    (dict(pairs=()), "must be pairs"),
  ],
)
def test_options_that_make_no_sense(options, message):
  with pytest.raises(ValueError, match=message):
    infonce.Loss(**options)


def test_a_batch_without_valid_rows_is_zero():
  loss = infonce.Loss()
  f = jax.value_and_grad(lambda p: loss(p, make(), {"valid": np.zeros(B, bool)})[0])
  value, grad = f(loss.init(jax.random.key(0)))
  assert value == 0 and grad["log_scale"] == 0
