"""cuDNN's attention, on a GPU: JAX_PLATFORMS=cuda python -m pytest -m gpu tests."""

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from model.encoders import towers
from model.layers import attention

pytestmark = [
  pytest.mark.gpu,
  pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU"),
]
B, H, D = 3, 2, 64


def distance(a, b):
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  assert np.isfinite(a).all()
  return np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6)


def some(kind, n):
  """Returns the options of `attend` of that kind."""
  rng = np.random.default_rng(n)
  mask = rng.random((B, n)) < 0.7
  mask[1] = False
  return {
    "none": {},
    "mask": {"mask": jnp.asarray(mask)},
    "segments": {"segments": jnp.asarray(np.sort(rng.integers(0, 3, (B, n)), axis=1))},
    "lengths": {"lengths": jnp.asarray([n, 1, n // 2], jnp.int32)},
  }[kind]


@pytest.mark.parametrize("n", [77, 78])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["none", "mask", "segments", "lengths"])
def test_value_and_gradient_are_those_of_the_formula(kind, causal, n):
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v, d = (jax.random.normal(key, (B, n, H, D), jnp.bfloat16) for key in keys)
  options = some(kind, n)
  if "lengths" in options:  # what a padding token sees is nobody's business
    real = jnp.arange(n)[None] < options["lengths"][:, None]
    d = d * real[:, :, None, None].astype(d.dtype)

  def run(implementation, dtype):
    def f(*qkv):
      return attention.attend(
        *qkv, causal=causal, implementation=implementation, **options
      )

    y, pull = jax.vjp(jax.jit(f), *(x.astype(dtype) for x in (q, k, v)))
    return y * (d != 0).astype(dtype), *pull(d.astype(dtype))

  with jax.default_matmul_precision("highest"):
    want = run("xla", jnp.float32)
  for name, a, b in zip(("y", "q", "k", "v"), run("cudnn", jnp.bfloat16), want):
    assert distance(a, b) < 1e-2, name


@pytest.mark.parametrize("queries", [1, 2])
def test_a_few_queries_see_what_the_mask_lets_them(queries):
  keys = jax.random.split(jax.random.key(0), 3)
  q, k, v = (jax.random.normal(key, (B, 77, H, D), jnp.bfloat16) for key in keys)
  mask = some("mask", 77)["mask"]

  def total(implementation, q, k, v):
    y = attention.attend(q, k, v, mask, implementation=implementation)
    return jnp.sum(jnp.sin(y.astype(jnp.float32)))

  got, want = (
    jax.jit(jax.grad(total, argnums=(1, 2, 3)), static_argnums=0)(
      name, q[:, :queries], k, v
    )
    for name in ("cudnn", "xla")
  )
  for a, b in zip(got, want):
    assert distance(a, b) < 2e-2


@pytest.mark.parametrize("name", ["cudnn", "triton"])
@pytest.mark.parametrize("shared", [False, True])
def test_towers_train_alike_with_either_attention(name, shared):
  if name == "triton":
    pytest.importorskip("jax_triton")
  m = base.get_config().model
  m.update(dict(dtype="bfloat16", embed_dim=64, shared_trunk=shared))
  m.trunk.update(dict(width=128, depth=2, heads=2, mlp=256))
  m.modalities.image = base.modality(size=(24, 24, 3), patch=(8, 8), pool="cls")
  m.modalities.text = base.modality(stem="tokens", vocab=50, length=9, pool="last")
  if not shared:
    m.modalities.text.trunk.causal = True
  rng = np.random.default_rng(0)
  mask = rng.random((8, 9)) < 0.7
  mask[0] = True
  batch = {
    "image": jnp.asarray(rng.standard_normal((8, 24, 24, 3)), jnp.float32),
    "text": jnp.asarray(rng.integers(1, 50, (8, 9)), jnp.int32),
    "text_mask": jnp.asarray(mask),
  }
  nets = {}
  for one in (name, "xla"):
    m.trunk.attention = one
    nets[one] = towers.build(m)
  params = jax.jit(nets["xla"].init)(jax.random.key(0), batch)["params"]

  def run(name):
    def total(params):
      encoded, _ = nets[name].apply({"params": params}, batch, train=True)
      return sum(jnp.sum(jnp.sin(3 * e.pooled)) for e in encoded.values())

    return jax.jit(jax.grad(total))(params)

  # All in one: the gradient by the bias of the keys is nothing but rounding.
  got, want = (jax.flatten_util.ravel_pytree(run(one))[0] for one in (name, "xla"))
  assert distance(got, want) < 3e-2
