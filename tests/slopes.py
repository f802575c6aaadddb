"""Losses against definitions in numpy: values, and slopes by central differences."""

from collections.abc import Callable
import functools

import jax
import numpy as np


def unit(b: int, d: int, modalities=("image", "text"), seed: int = 0) -> dict:
  """Returns {modality: f32[b, d]} of unit norm that share a signal."""
  rng = np.random.default_rng(seed)
  common = rng.normal(size=(b, d))
  z = {m: common + rng.normal(size=(b, d)) for m in modalities}
  return {
    m: (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    for m, x in z.items()
  }


def assert_is(
  loss, loop: Callable[[dict], float], z: dict, batch: dict, *, rtol=3e-6, slope=2e-5
) -> dict:
  """Checks loss(z) and its gradient by every coordinate of z against loop(z).

  Args:
    loss: without parameters.
    loop: the definition, of {modality: f64[b, d]}.
    z: {modality: f32[b, d]}.
    batch: what the loss reads besides.
    rtol: of the value.
    slope: of the gradient, relative to its greatest coordinate.

  Returns:
    The loss's metrics.
  """
  f = jax.jit(jax.value_and_grad(functools.partial(loss, {}), has_aux=True))
  (value, metrics), grad = jax.device_get(f(z, batch))
  exact = {m: np.asarray(x, np.float64) for m, x in z.items()}
  np.testing.assert_allclose(value, loop(exact), rtol=rtol, atol=1e-7)
  want = slopes(loop, exact)
  most = max(np.abs(x).max() for x in want.values())
  for m in z:
    np.testing.assert_allclose(grad[m], want[m], rtol=0, atol=slope * most)
  return metrics


def slopes(loop: Callable[[dict], float], z: dict, h: float = 1e-5) -> dict:
  """Returns {name: f64[...]}: d loop / d z by central differences."""
  out = {m: np.zeros_like(x) for m, x in z.items()}
  for m, x in z.items():
    for at in np.ndindex(x.shape):
      ends = []
      for step in (h, -h):
        moved = x.copy()
        moved[at] += step
        ends.append(loop({**z, m: moved}))
      out[m][at] = (ends[0] - ends[1]) / (2 * h)
  return out
