"""FDT's dictionary against its formulas in numpy; blocks, padding, memory, errors."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from model.heads import codebook
from model.layers.sparsemax import sparsemax
from model.types import MESH_AXES, Encoded
from sharding import rules

B, N, W, D, M = 4, 5, 6, 3, 8
MASK = np.arange(N)[None] < np.array([5, 3, 1, 0])[:, None]
HEAD = codebook.Head(codes=M, width=D, temperature=0.5, block=4)
KEY = jax.random.key(0)
SPARSEMAX = jax.jit(sparsemax)


@functools.cache
def case():
  rng = np.random.default_rng(0)
  tokens = rng.normal(size=(2, B, N, W)).astype(np.float32)
  encoded = {
    "image": Encoded(np.zeros((B, 2), np.float32), tokens[0]),
    "text": Encoded(np.zeros((B, 2), np.float32), tokens[1], MASK),
  }
  params = jax.device_get(jax.jit(HEAD.init)(KEY, encoded))
  return params, encoded


def layer_norm(x):
  return (x - x.mean()) / np.sqrt(x.var() + 1e-6)


def query(p, x):
  x = layer_norm(x) @ p["up"]["kernel"] + p["up"]["bias"]
  x = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x])
  return layer_norm(x) @ p["down"]["kernel"] + p["down"]["bias"]


def relevance(params, name, e, i, pool):
  real = np.flatnonzero(np.ones(N) if e.mask is None else e.mask[i])
  if not len(real):
    return np.zeros(M)
  queries = [query(params[f"query_{name}"], np.float64(e.tokens[i, n])) for n in real]
  r = np.array([params["codes"] @ q / np.sqrt(D) for q in queries])
  return getattr(np, pool)(r, axis=0) / HEAD.temperature


@pytest.mark.parametrize(
  ("pool", "weights"), [("max", "sparsemax"), ("mean", "softmax"), ("sum", "softmax")]
)
def test_embeddings_are_the_mixture_of_codes(pool, weights):
  params, encoded = case()
  head = dataclasses.replace(HEAD, pool=pool, weights=weights)
  out = jax.jit(lambda e: (head(params, e, KEY, True), head.use(params, e)))
  got, used = jax.device_get(out(encoded))
  for name, e in encoded.items():
    r = np.array([relevance(params, name, e, i, pool) for i in range(B)])
    w = np.exp(r) / np.exp(r).sum(1, keepdims=True)
    if weights == "sparsemax":
      w = np.asarray(SPARSEMAX(r.astype(np.float32)))
      assert (w[:3] > 0).sum(1).max() < M
    np.testing.assert_array_equal(used[name] > 0, w > 0)
    want = w @ params["codes"]
    np.testing.assert_allclose(got[name].pooled, want, rtol=1e-4, atol=1e-5)
    assert got[name].tokens.shape == e.tokens.shape


def slope(head, params, encoded):
  def total(params, encoded):
    out = head(params, encoded, KEY, True)
    return sum(jnp.sum(jnp.square(e.pooled)) for e in out.values())

  f = jax.jit(jax.value_and_grad(total, argnums=(0, 1), allow_int=True))
  return jax.device_get(f(params, encoded))


def test_blocks_and_padding_change_nothing():
  """In value and in gradient; nan in the padding neither."""
  params, encoded = case()
  value, (grads, de) = slope(HEAD, params, encoded)
  text = encoded["text"]
  spoilt = np.where(MASK[:, :, None], text.tokens, np.float32(np.nan))
  changed = {**encoded, "text": dataclasses.replace(text, tokens=spoilt)}
  whole = dataclasses.replace(HEAD, block=M)
  want, (want_grads, want_de) = slope(whole, params, changed)
  np.testing.assert_allclose(value, want, rtol=1e-6)
  for got, good in zip(jax.tree.leaves(grads), jax.tree.leaves(want_grads)):
    np.testing.assert_allclose(got, good, rtol=1e-5, atol=1e-5)
  for e in (de, want_de):
    assert np.all(e["text"].tokens[~MASK] == 0)
  # Both query heads and, of the codes, those in use learn.
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads))


def test_a_dictionary_split_over_devices_is_the_same():
  params, encoded = case()
  want = slope(HEAD, params, encoded)
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  mesh = jax.make_mesh((2, 2, 1, 2), MESH_AXES, axis_types=auto)
  laid = rules.specs(params, mesh)
  assert laid["codes"].spec == P("fsdp")
  with jax.set_mesh(mesh):
    rows = jax.NamedSharding(mesh, P(("data", "fsdp")))
    got = slope(HEAD, jax.device_put(params, laid), jax.device_put(encoded, rows))
  # But those by masks, which are of no number.
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    if x.dtype == np.float32:
      np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


def test_memory_is_a_block_of_codes():
  b, n, m = 16, 32, 512
  x = jax.ShapeDtypeStruct((b, n, W), jnp.float32)
  head = codebook.Head(codes=m, width=D, block=16)
  encoded = {"image": Encoded(x, x)}
  params = jax.eval_shape(head.init, KEY, encoded)

  def total(params, encoded):
    return jnp.sum(jnp.square(head(params, encoded, KEY, True)["image"].pooled))

  lowered = jax.jit(jax.grad(total)).lower(params, encoded)
  temp = lowered.compile().memory_analysis().temp_size_in_bytes
  assert temp < b * n * m * 4 / 2  # half of one [b, n, M]


def test_errors_say_what_was_got():
  with pytest.raises(ValueError, match="asks tokens for codes; 'text' has none"):
    HEAD.init(KEY, {"text": Encoded(jnp.ones((B, D)))})
  with pytest.raises(ValueError, match=r"9, not divisible by block = 4 \(9 % 4 = 1\)"):
    codebook.Head(codes=9, block=4)
  with pytest.raises(ValueError, match="pool = 'min'"):
    codebook.Head(pool="min")
  with pytest.raises(ValueError, match="temperature = 0"):
    codebook.Head(temperature=0)
