from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers import attention, matmul
from tests.model.layers.cudnn import stand_in
from tests.model.layers.filled import filled

B, N, H, D = 2, 5, 2, 4
SEGMENTS = np.array([[0, 0, 2, 1, 1], [3, 0, 0, 0, 3]], np.int32)
MASK = np.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)


def qkv(seed=0, n=N):
  keys = jax.random.split(jax.random.key(seed), 3)
  return [jax.random.normal(key, (B, n, H, D)) for key in keys]


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


def some(kind, n):
  """Returns options of `attend` and, bool[b, n], the queries whose results count."""
  every = jnp.ones((B, n), bool)
  lengths = jnp.asarray([n, 2], jnp.int32)
  return {
    "none": ({}, every),
    "mask": ({"mask": jnp.asarray(np.pad(MASK, ((0, 0), (0, 1)))[:, :n])}, every),
    "segments": (
      {"segments": jnp.asarray(np.pad(SEGMENTS, ((0, 0), (0, 1)))[:, :n])},
      every,
    ),
    # What a query of padding sees is nobody's business.
    "lengths": ({"lengths": lengths}, jnp.arange(n)[None] < lengths[:, None]),
  }[kind]


@pytest.mark.parametrize("n", [N, N + 1])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "mask", "segments", "lengths"])
def test_cudnn_gets_what_it_can_train_on_and_gives_the_same(
  monkeypatch, kind, causal, n
):
  calls = stand_in(monkeypatch)
  options, counts = some(kind, n)

  def total(implementation, q, k, v):
    y = attention.attend(
      q, k, v, implementation=implementation, causal=causal, **options
    )
    y = jnp.where(counts[..., None, None], y, 0.0)
    return jnp.sum(jnp.sin(y)), y

  got, want = (
    jax.grad(total, argnums=(1, 2, 3), has_aux=True)(name, *qkv(n=n))
    for name in ("cudnn", "xla")
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, want)
  even = n + n % 2
  masked = kind in ("mask", "segments")
  # Causal queries of real tokens see no key behind them, padding or not.
  limited = not causal and (kind == "lengths" or (kind == "none" and n % 2 == 1))
  assert calls == [(even, even, causal, masked, limited)]


@pytest.mark.parametrize("kind", ["none", "mask", "lengths"])
def test_cudnn_takes_a_single_query(monkeypatch, kind):
  calls = stand_in(monkeypatch)
  options, _ = some(kind, N)
  q, k, v = qkv()
  got, want = (
    attention.attend(q[:, :1], k, v, implementation=name, **options)
    for name in ("cudnn", "xla")
  )
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert [call[:2] for call in calls] == [(2, N + 1)]


@pytest.mark.parametrize("causal", [False, True])
def test_lengths_are_a_mask_of_the_first_keys(causal):
  lengths = jnp.asarray([1, 4], jnp.int32)
  mask = jnp.asarray([[1, 0, 0, 0, 0], [1, 1, 1, 1, 0]], bool)
  got = attention.attend(*qkv(), lengths=lengths, causal=causal)
  want = attention.attend(*qkv(), mask, causal=causal)
  np.testing.assert_array_equal(got, want)
  assert not np.allclose(got, attention.attend(*qkv(), causal=causal))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_heads_are_projected_to_as_by_a_dense_layer(dtype):
  init = nn.initializers.xavier_uniform()
  dense = nn.DenseGeneral((H, D), dtype=dtype, kernel_init=init)
  x = jax.random.normal(jax.random.key(1), (B, N, H * D))
  # Checkpoints and seeds are those of the dense layer that this was.
  want = dense.init(jax.random.key(2), x)
  got = matmul.Weights((H, D)).init(jax.random.key(2), H * D)
  assert jax.tree.map(jnp.shape, got) == {
    "params": {"kernel": (H * D, H, D), "bias": (H, D)}
  }
  jax.tree.map(np.testing.assert_array_equal, got, want)
  params = filled(dense, x)
  p = params["params"]
  got = matmul.linear(x, p["kernel"], p["bias"], dtype)
  want = dense.apply(params, x)
  assert got.dtype == want.dtype == dtype
  tolerance = 4 * float(jnp.finfo(dtype).eps)
  np.testing.assert_allclose(
    *(y.astype(jnp.float32) for y in (got, want)), rtol=tolerance, atol=tolerance
  )


def test_module_parameters_queries_and_dtype():
  module = attention.Attention(heads=H, dtype=jnp.bfloat16)
  x = jnp.ones((B, N, H * D), jnp.bfloat16)
  query = jnp.ones((B, 1, H * D), jnp.bfloat16)
  variables = filled(module, x, MASK, query)
  y, bias = jax.jit(module.apply)(variables, x, MASK, query)
  assert y.shape == (B, 1, H * D) and y.dtype == jnp.bfloat16
  params = variables["params"]
  assert params["query"]["kernel"].shape == (H * D, H, D)
  assert params["out"]["kernel"].shape == (H, D, H * D) and bias.shape == (H * D,)
  assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_heads_must_divide_the_width():
  with pytest.raises(ValueError, match=r"width 8 .*heads = 3 \(8 % 3 = 2\)"):
    attention.Attention(heads=3).init(jax.random.key(0), jnp.ones((1, 2, 8)))
