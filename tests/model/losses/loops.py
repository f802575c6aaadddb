"""What the tests of losses share: unit vectors, and slopes of a loop in f64."""

import jax
import numpy as np

B, D = 9, 4


def make(seed=0, modalities=("image", "text"), b=B, d=D):
  """Unit vectors that share a signal."""
  rng = np.random.default_rng(seed)
  common = rng.normal(size=(b, d))
  z = {m: common + rng.normal(size=(b, d)) for m in modalities}
  return {
    m: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    for m, x in z.items()
  }


def rows_of(valid, b=B):
  """The places of valid rows; `valid` may be None."""
  return [i for i in range(b) if valid is None or valid[i]]


def lse(values):
  """log sum exp of a list, in f64."""
  values = np.asarray(values, np.float64)
  top = values.max()
  return top + np.log(np.sum(np.exp(values - top)))


def both_ways(one_way):
  """The mean of one_way(x, y) and one_way(y, x), of image and text."""

  def loop(z, *args):
    a, b = z["image"], z["text"]
    return (one_way(a, b, *args) + one_way(b, a, *args)) / 2

  return loop


def evaluate(loss, z, batch, params=None):
  """((value, metrics), (gradient by parameters, gradient by z)), compiled."""
  params = loss.init(jax.random.key(0)) if params is None else params
  f = jax.value_and_grad(lambda p, z: loss(p, z, batch), argnums=(0, 1), has_aux=True)
  return jax.device_get(jax.jit(f)(params, z))


def check(loss, loop, z, batch, scale=None, rtol=3e-6, slope=2e-5):
  """The loss's value and whole gradient are those of loop(z in f64, scale).

  Args:
    loss: to be tested.
    loop: (z, scale or None) -> float, one pair at a time.
    z: {modality: f32[b, d]}.
    batch: of the loss.
    scale: at which the loss's "log_scale" starts; None: it has none.
    rtol: of the value.
    slope: of the gradient, relative to its greatest entry.

  Returns:
    (value, metrics).
  """
  (value, metrics), (grads, dz) = evaluate(loss, z, batch)
  exact = {m: x.astype(np.float64) for m, x in z.items()}
  np.testing.assert_allclose(value, loop(exact, scale), rtol=rtol)
  h = 1e-5
  for m, x in exact.items():
    want = np.zeros_like(x)
    for place in np.ndindex(x.shape):
      step = np.zeros_like(x)
      step[place] = h
      ahead, behind = (loop(exact | {m: x + s}, scale) for s in (step, -step))
      want[place] = (ahead - behind) / (2 * h)
    size = np.abs(want).max()
    np.testing.assert_allclose(dz[m], want, rtol=0, atol=slope * size, err_msg=m)
  if scale is not None:
    ahead, behind = (loop(exact, scale * np.exp(s)) for s in (h, -h))
    want = (ahead - behind) / (2 * h)
    np.testing.assert_allclose(grads["log_scale"], want, rtol=slope, atol=slope)
  return value, metrics
