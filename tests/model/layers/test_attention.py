import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers import attention
from tests.model.layers.filled import filled

B, N, H, D = 2, 5, 2, 4
SEGMENTS = np.array([[0, 0, 2, 1, 1], [3, 0, 0, 0, 3]], np.int32)
MASK = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)


def qkv(seed=0, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(seed), 3)
  return [jax.random.normal(key, (B, N, H, D), dtype) for key in keys]


def reference(q, k, v, allowed):
  """allowed: bool[b, q, n]; rows that see nothing give 0."""
  q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
  y = np.zeros_like(q)
  for b, i, h in np.ndindex(B, N, H):
    keys = np.flatnonzero(allowed[b, i])
    if keys.size:
      logits = k[b, keys, h] @ q[b, i, h] / np.sqrt(D)
      p = np.exp(logits - logits.max())
      y[b, i, h] = p @ v[b, keys, h] / p.sum()
  return y


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_attend_equals_the_formula(causal, masked):
  mask = MASK if masked else None
  allowed = (
    np.ones((B, N, N), bool) if mask is None else MASK[:, None] & np.ones((N, 1), bool)
  )
  if causal:
    allowed &= np.tril(np.ones((N, N), bool))
  attend = jax.jit(lambda q, k, v: attention.attend(q, k, v, mask, causal=causal))
  q, k, v = qkv()
  np.testing.assert_allclose(attend(q, k, v), reference(q, k, v, allowed), atol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_tokens_see_their_own_segment(causal):
  allowed = SEGMENTS[:, :, None] == SEGMENTS[:, None]
  if causal:
    allowed &= np.tril(np.ones((N, N), bool))
  q, k, v = qkv()
  got = attention.attend(q, k, v, segments=jnp.asarray(SEGMENTS), causal=causal)
  np.testing.assert_allclose(got, reference(q, k, v, allowed), atol=1e-6)


def test_masked_keys_have_no_influence_at_all():
  q, k, v = qkv()
  attend = jax.jit(lambda k, v: attention.attend(q, k, v, jnp.asarray(MASK)))
  other = [jnp.where(MASK[..., None, None], a, b) for a, b in zip((k, v), qkv(1)[1:])]
  np.testing.assert_array_equal(attend(k, v)[0], attend(*other)[0])


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_that_sees_nothing_is_zero_with_zero_gradient(causal):
  mask = jnp.asarray([[0, 1, 1, 1, 1], [0, 0, 0, 0, 0]], bool)

  def total(q, k, v):
    y = attention.attend(q, k, v, mask, causal=causal)
    return jnp.sum(jnp.square(y)), y

  grads, y = jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(*qkv())
  assert np.all(np.asarray(y[1]) == 0)
  assert np.all(np.asarray(y[0, 0]) == 0) == causal
  for g in grads:
    assert np.all(np.isfinite(g)) and np.all(np.asarray(g[1]) == 0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("given", [{}, {"mask": MASK}, {"segments": SEGMENTS}])
def test_cudnn_gets_even_lengths_where_there_is_a_mask(monkeypatch, causal, given):
  lengths, odd = [], bool(given)

  def cudnn(q, k, v, mask, is_causal, implementation):
    """Refuses what cuDNN refuses while training; else computes the same."""
    assert implementation == "cudnn"
    lengths.append((q.shape[1], k.shape[1]))
    assert mask is None or all(n % 2 == 0 for n in lengths[-1])
    return attention._dense(q, k, v, mask, is_causal, "xla")

  monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
  options = dict(causal=causal, **{k: jnp.asarray(x) for k, x in given.items()})

  def total(implementation, q, k, v):
    y = attention.attend(q, k, v, implementation=implementation, **options)
    return jnp.sum(jnp.sin(y)), y

  both = [
    jax.grad(total, argnums=(1, 2, 3), has_aux=True)(name, *qkv())
    for name in ("cudnn", "xla")
  ]
  assert lengths == [(N + odd, N + odd)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *both)


def test_module_parameters_queries_and_dtype():
  module = attention.Attention(heads=H, dtype=jnp.bfloat16)
  x = jnp.ones((B, N, H * D), jnp.bfloat16)
  query = jnp.ones((B, 1, H * D), jnp.bfloat16)
  variables = filled(module, x, MASK, query)
  y = jax.jit(module.apply)(variables, x, MASK, query)
  assert y.shape == (B, 1, H * D) and y.dtype == jnp.bfloat16
  params = variables["params"]
  assert params["query"]["kernel"].shape == (H * D, H, D)
  assert params["out"]["kernel"].shape == (H, D, H * D)
  assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_heads_must_divide_the_width():
  with pytest.raises(ValueError, match=r"width 8 .*heads = 3 \(8 % 3 = 2\)"):
    attention.Attention(heads=3).init(jax.random.key(0), jnp.ones((1, 2, 8)))
