"""PCME's heads against their formulas in numpy; draws, padding and errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.heads import probabilistic
from model.types import Encoded

B, N, W, D = 4, 5, 6, 3
MASK = np.arange(N)[None] < np.array([5, 3, 1, 0])[:, None]
HEAD = probabilistic.Head(draws=2000, log_var=-2.0)


@functools.cache
def trained():
  """Encoded of two towers, and parameters none of which is at its start."""
  rng = np.random.default_rng(0)
  encoded = {
    "image": Encoded(rng.normal(size=(B, D)), rng.normal(size=(B, N, W))),
    "text": Encoded(rng.normal(size=(B, D)), rng.normal(size=(B, N, W)), MASK),
  }
  encoded = jax.tree.map(
    lambda x: x if x.dtype == bool else x.astype(np.float32), encoded
  )
  start = jax.jit(HEAD.init)(jax.random.key(0), encoded)
  moved = jax.tree.map(
    lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), start
  )
  return encoded, start, moved


@functools.cache
def run(train):
  return jax.jit(lambda p, e: HEAD(p, e, jax.random.key(1), train))


def attend(p, name, x, real):
  score = np.tanh(x @ p[f"attend_{name}_up"]["kernel"])
  score = np.where(real, (score @ p[f"attend_{name}_down"]["kernel"])[..., 0], -np.inf)
  weight = np.exp(score - score.max(initial=-1e3))
  return (weight / max(weight.sum(), 1e-30)) @ x


def want(p, e, i):
  """The mean and log-variance of one example."""
  x = np.float64(e.tokens[i])
  real = np.ones(N, bool) if e.mask is None else e.mask[i]
  mean = attend(p, "mean", x, real) @ p["mean"]["kernel"] + p["mean"]["bias"]
  mean = e.pooled[i] + 1 / (1 + np.exp(-mean))
  mean = (mean - mean.mean()) / np.sqrt(mean.var() + 1e-6)
  mean = mean * p["norm"]["scale"] + p["norm"]["bias"]
  log_var = attend(p, "log_var", x, real) @ p["log_var"]["kernel"]
  log_var += p["log_var"]["bias"] + e.pooled[i] @ p["pooled"]["kernel"]
  return mean / np.linalg.norm(mean), log_var


def test_mean_and_log_variance_are_the_formulas():
  encoded, _, params = trained()
  got = run(False)(params, encoded)
  for m, e in encoded.items():
    for i in range(B):
      mean, log_var = want(jax.device_get(params[m]), e, i)
      np.testing.assert_allclose(got[m].pooled[i], mean, rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(got[m].log_var[i], log_var, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(got[m].tokens[:, 0], got[m].pooled)


def test_draws_have_the_mean_and_variance_and_differ_between_examples():
  encoded, _, params = trained()
  got = jax.device_get(run(True)(params, encoded))
  noise = []
  for e in got.values():
    assert e.tokens.shape == (B, HEAD.draws, D) == (*e.mask.shape, D)
    noise.append((e.tokens - e.pooled[:, None]) / np.exp(e.log_var / 2)[:, None])
  noise = np.stack(noise)
  np.testing.assert_allclose(noise.mean(2), 0, atol=0.1)
  np.testing.assert_allclose(noise.std(2), 1, atol=0.1)
  flat = noise.reshape(2 * B, -1)
  assert np.abs(np.corrcoef(flat) - np.eye(2 * B)).max() < 0.1
  assert not got["text"].mask[3].any() and got["text"].mask[:3].all()


def test_every_log_variance_starts_alike():
  encoded, start, _ = trained()
  got = run(False)(start, encoded)
  np.testing.assert_allclose(got["image"].log_var, -2.0, rtol=1e-6)


def test_padding_has_no_say():
  encoded, _, params = trained()
  text = encoded["text"]
  spoilt = np.where(MASK[:, :, None], text.tokens, np.float32(np.nan))
  changed = {**encoded, "text": Encoded(text.pooled, spoilt, MASK)}

  def total(e):
    out = run(True)(params, e)
    return jnp.sum(out["text"].tokens) + jnp.sum(out["text"].log_var)

  for e in (encoded, changed):
    value, grad = jax.value_and_grad(total, allow_int=True)(e)
    assert np.all(np.asarray(grad["text"].tokens)[~MASK] == 0)
    np.testing.assert_allclose(value, total(encoded), rtol=1e-6)


def test_errors_say_what_was_got():
  with pytest.raises(ValueError, match="attends to tokens; 'text' has none"):
    HEAD.init(jax.random.key(0), {"text": Encoded(jnp.ones((B, D)))})
  with pytest.raises(ValueError, match="draws = 0"):
    probabilistic.Head(draws=0)
