"""PCME against loops over pairs and draws in f64; its limits, memory and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.losses import pcme, reduce, sets
from model.losses.siglip import pair_loss
from model.types import Encoded
from tests import slopes

B, J, D = 5, 3, 3
VALID = np.arange(B) != 2
IDS = np.array([0, 1, 2, 0, 4], np.int32)
SIDES = ("image", "text")


def make(b=B, j=J):
  """Means, log-variances and draws, not tied to each other: all have a gradient."""
  rng = np.random.default_rng(0)
  x = {"log_scale": np.log(2.0), "shift": 1.5}
  for m in SIDES:
    x[f"{m}_mean"] = rng.normal(size=(b, D))
    x[f"{m}_log_var"] = rng.normal(size=(b, D)) - 1
    x[f"{m}_draws"] = x[f"{m}_mean"][:, None] + 0.3 * rng.normal(size=(b, j, D))
  return {k: np.asarray(v, np.float32) for k, v in x.items()}


def call(loss, x, batch):
  z = {
    m: Encoded(x[f"{m}_mean"], x[f"{m}_draws"], None, x[f"{m}_log_var"]) for m in SIDES
  }
  return loss({k: x[k] for k in ("log_scale", "shift")}, z, batch)


def match(x, i, j):
  """The mean over pairs of draws of exp(s) / (exp(s) + exp(-s))."""
  total = []
  for z in x["image_draws"][i]:
    for y in x["text_draws"][j]:
      distance = np.sqrt(np.sum((z - y) ** 2) + 1e-6)
      s = x["shift"] - np.exp(x["log_scale"]) * distance
      total.append(np.exp(s) / (np.exp(s) + np.exp(-s)))
  return np.mean(total)


def loop(x, ids, vib, uniformity):
  rows, total = np.flatnonzero(VALID), 0.0
  for i in rows:
    for j in rows:
      p = match(x, i, j)
      total -= np.log(p if ids[i] == ids[j] else 1 - p) / len(rows)
  for m in SIDES:
    for i in rows:
      mean, log_var = x[f"{m}_mean"][i], x[f"{m}_log_var"][i]
      kl = 0.5 * np.sum(np.exp(log_var) + mean**2 - 1 - log_var)
      total += vib / 2 * kl / len(rows)
  flat = np.concatenate([x[f"{m}_draws"][rows].reshape(-1, D) for m in SIDES])
  square = [np.sum((u - v) ** 2) for i, u in enumerate(flat) for v in flat[:i]]
  return total + uniformity * np.log(np.mean(np.exp(-2 * np.asarray(square))))


@pytest.mark.parametrize(
  ("ids", "options"),
  [
    (np.arange(B, dtype=np.int32), dict(vib=0.1)),
    (IDS, dict(vib=1e-5, uniformity=0.5, positives="ids")),
  ],
)
def test_value_and_slope_are_the_loop(ids, options):
  loss = pcme.Loss(**options)
  full = {"uniformity": 0.0} | {k: v for k, v in options.items() if k != "positives"}
  metrics = slopes.assert_is(
    lambda _, x, batch: call(loss, x, batch),
    lambda x: loop(x, ids, **full),
    make(),
    {"valid": VALID, "id": ids},
    rtol=1e-5,
  )
  x = {k: np.float64(v) for k, v in make().items()}
  own = np.mean([match(x, i, i) for i in np.flatnonzero(VALID)])
  np.testing.assert_allclose(metrics["pcme/match_image_text"], own, rtol=1e-5)
  spread = np.mean(np.exp(x["text_log_var"][VALID] / 2))
  np.testing.assert_allclose(metrics["pcme/std_text"], spread, rtol=1e-5)


def test_one_draw_each_is_the_loss_of_points_and_loses_no_digit_in_saturation():
  """-log P of a pair far apart, -log(1 - P) of one point: as exact as any other."""
  f = jax.jit(lambda x: call(pcme.Loss(vib=0.0), x, {})[0])
  x = make(j=1)
  for scale, shift, apart in ((2.0, 1.5, 1), (15.0, 15.0, 9)):
    x["log_scale"], x["shift"] = np.float32(np.log(scale)), np.float32(shift)
    x["text_draws"][1:3] = apart * x["image_draws"][:2]
    a, b = (np.float64(x[f"{m}_draws"][:, 0]) for m in SIDES)
    distance = np.sqrt(np.sum((a[:, None] - b[None]) ** 2, -1) + 1e-6)
    s = shift - scale * distance
    want = np.logaddexp(0, np.where(np.eye(B, dtype=bool), -2 * s, 2 * s))
    np.testing.assert_allclose(f(x), want.sum() / B, rtol=1e-5)


def test_memory_is_a_tile_of_pairs_of_draws():
  b, j = 256, 4
  spec = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make(b, j))
  f = jax.grad(lambda x: call(pcme.Loss(strategy="tiled", tile=4), x, {})[0])
  temp = jax.jit(f).lower(spec).compile().memory_analysis().temp_size_in_bytes
  assert temp < b * j * b * j * 4 / 4  # a quarter of what one number for each takes


def test_errors_say_what_to_set():
  z = {m: Encoded(jnp.ones((B, D)), jnp.ones((B, J, D))) for m in SIDES}
  loss = pcme.Loss()
  with pytest.raises(ValueError, match=r'name "probabilistic" in config\.objective'):
    loss(loss.init(jax.random.key(0)), z, {})
  with pytest.raises(ValueError, match=r"positives = 'id' must be one of"):
    pcme.Loss(positives="id")
  with pytest.raises(ValueError, match=r"scale = 0 must be above 0"):
    pcme.Loss(scale=0)


def test_a_learned_scale_of_draws_is_refused():
  x = sets.Samples(jnp.ones((2, 3, 4)), jnp.ones((2, 3)))
  with pytest.raises(ValueError, match=r"must be a float, such as 1\.0"):
    reduce.pair_sum(pair_loss, x, x, jnp.float32(2))
