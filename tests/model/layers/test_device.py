"""What is written otherwise for a TPU is the same function."""

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model.layers import attention, device, mlp

B, N, W = 2, 3, 8


class Layers(nn.Module):
  """An attention and an MLP."""

  @nn.compact
  def __call__(self, x, mask):
    """x: [b, n, w]."""
    x = x + attention.Attention(2, name="attention")(x, mask)[0]
    return x + mlp.Mlp(16, name="mlp")(x)[0]


def test_a_tpu_computes_the_same_without_flattening_tokens(monkeypatch):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.standard_normal((B, N, W)), jnp.float32)
  mask = jnp.asarray([[True, True, False], [True, True, True]])
  params = Layers().init(jax.random.key(0), x, mask)

  def run(params, x):
    y = Layers().apply(params, x, mask)
    return jnp.sum(jnp.sin(y)), y

  def traced():
    grad = jax.value_and_grad(run, (0, 1), has_aux=True)
    return grad(params, x), str(jax.make_jaxpr(lambda *a: grad(*a))(params, x))

  expected, flat = traced()
  assert device.ambient()[0] == "cpu" and f"f32[{B * N}," in flat
  monkeypatch.setattr(device, "is_tpu", lambda: True)
  actual, apart = traced()
  assert f"f32[{B * N}," not in apart
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected
  )
