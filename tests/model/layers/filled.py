"""Parameters for tests without the initialisers, whose compilation dominates."""

import jax
import jax.numpy as jnp
import numpy as np


def filled(module, *args, seed=0, **kwargs):
  """Returns {"params": ...} of the module's shapes and dtypes, random, of std 0.2."""
  init = jax.eval_shape(lambda: module.init(jax.random.key(0), *args, **kwargs))
  rng = np.random.default_rng(seed)
  fill = lambda a: jnp.asarray(0.2 * rng.standard_normal(a.shape), a.dtype)  # noqa: E731
  return {"params": jax.tree.map(fill, init.get("params", {}))}
