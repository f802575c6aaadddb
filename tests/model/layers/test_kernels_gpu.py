"""Kernels against formulas: JAX_PLATFORMS=cuda python -m pytest -m gpu tests."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers import launch
from model.layers.mlp import ACTIVATIONS
from tests.model.layers import kernels

pytestmark = [
  pytest.mark.gpu,
  pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU"),
  pytest.mark.skipif(
    importlib.util.find_spec("jax_triton") is None, reason="needs requirements-gpu.txt"
  ),
]
B = 3


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape).astype(jnp.bfloat16)


def check(got, want, tolerance=4e-3):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    assert a.shape == b.shape and np.isfinite(a).all()
    assert np.linalg.norm(a - b) < tolerance * np.linalg.norm(b)


def exact(f, *args):
  """Returns f of the same numbers in f32."""
  with jax.default_matmul_precision("highest"):
    return jax.jit(f)(*jax.tree.map(lambda x: x.astype(jnp.float32), args))


@pytest.mark.skipif(not launch.hopper(), reason="needs a Hopper GPU")
@pytest.mark.parametrize(
  ("n", "kind"), [(197, "all"), (77, "causal"), (50, "lengths"), (256, "lengths")]
)
def test_attention(n, kind):
  causal = kind == "causal"
  lengths = jnp.asarray([n, 1, n // 2 + 3], jnp.int32) if kind == "lengths" else None
  qkv, d = normal(0, B, n, 2, 3, 64), normal(1, B, n, 2, 64)

  def forward(f, qkv):
    return f.attend(qkv, lengths, causal)

  def backward(f, qkv, y, log, d):
    by, sums = f.attend_backward(qkv, lengths, y, log, d, causal)
    return *jnp.unstack(by, axis=3), sums[:, :, 0], sums[:, :, 2]

  y, log = jax.jit(lambda qkv: forward(launch, qkv))(qkv)
  want = exact(lambda qkv: forward(kernels, qkv), qkv)
  check((y, log), want)
  run = jax.jit(lambda *args: backward(launch, *args))
  got, again = run(qkv, y, log, d), run(qkv, y, log, d)
  check(got, exact(lambda *args: backward(kernels, *args), qkv, *want, d))
  jax.tree.map(np.testing.assert_array_equal, again, got)  # to the bit


@pytest.mark.parametrize(("t", "w"), [(1000, 768), (7, 512), (5000, 1536)])
@pytest.mark.parametrize("add", [True, False])
def test_norm(t, w, add):
  x, z, d, more = (normal(i, t, w) for i in range(4))
  z, more = (z, more) if add else (None, None)
  scale, bias = (normal(i, w).astype(jnp.float32) for i in (4, 5))
  y, normed = jax.jit(lambda *args: launch.add_norm(*args, 1e-6))(x, z, scale, bias)
  np.testing.assert_array_equal(y, x + z if add else x)  # rounded as it always is
  check(normed, exact(lambda *a: kernels.add_norm(*a, 1e-6)[1], y, None, scale, bias))

  def backward(f, *args):
    by, sums = f.add_norm_backward(*args, 1e-6)
    return by, jnp.sum(sums, axis=0)

  got = jax.jit(lambda *args: backward(launch, *args))(y, d, more, scale)
  check(got, exact(lambda *args: backward(kernels, *args), y, d, more, scale))


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize(("t", "w"), [(777, 1536), (3, 100)])
def test_activation(kind, t, w):
  def backward(f, *args):
    by, sums = f.activate_backward(*args, kind)
    return by, jnp.sum(sums, axis=0)

  x, d = normal(0, t, w) * 2, normal(1, t, w)
  got = jax.jit(lambda *args: backward(launch, *args))(x, d)
  check(got, exact(lambda *args: backward(kernels, *args), x, d))
