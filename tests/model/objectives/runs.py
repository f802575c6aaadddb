"""Towers that compile in a second, for objectives that keep something; their steps."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax

from model.types import Encoded
from tests.small import batch_of, tiny
from training import setup as setup_lib

D = 8  # of Linear
# Of Identity: embeddings in the place of inputs.
SPEC = {m: jax.ShapeDtypeStruct((4, 3), jnp.float32) for m in ("image", "text")}


class Identity:
  """Towers that give what they get, for the `init` of objectives."""

  def init(self, key, batch, train):
    return {}

  def apply(self, params, batch, train):
    return {m: Encoded(batch[m]) for m in SPEC if m in batch}, {}


def unit(tree):
  """numpy's {m: x / |x|}."""
  return {m: x / np.linalg.norm(x, axis=-1, keepdims=True) for m, x in tree.items()}


@dataclasses.dataclass(frozen=True)
class Linear:
  """Towers that are one matrix per modality."""

  @property
  def modalities(self):
    return [types.SimpleNamespace(name=m) for m in ("image", "text")]

  def init(self, key, batch, train):
    def matrix(i, m):
      width = math.prod(batch[m].shape[1:])
      return jax.random.normal(jax.random.fold_in(key, i), (width, D)) / 8

    present = [m.name for m in self.modalities if m.name in batch]
    return {
      "params": {m: {"kernel": matrix(i, m)} for i, m in enumerate(present)},
    }

  def apply(self, variables, batch, train, rngs=None):
    out = {}
    for m, p in variables["params"].items():
      if m in batch:
        x = batch[m].reshape(batch[m].shape[0], -1).astype(jnp.float32)
        out[m] = Encoded(x @ p["kernel"])
    return out, {}


def trained(name, options, mesh, n=3, **changes):
  """Returns (setup, step, states after 0..n steps of SGD, losses)."""
  config = tiny(batch_size=8, **changes)
  config.mesh.update(mesh)
  config.objective.name, config.objective.options = name, options
  setup = setup_lib.build(config, jax.devices()[: math.prod(mesh.values())])
  # Two states of SGD differ by the gradient.
  setup = dataclasses.replace(setup, towers=Linear(), tx=optax.sgd(0.1))
  states, values = [], []
  with jax.set_mesh(setup.mesh):
    state, step = setup.init_state(), setup.train_step()
    states.append(jax.device_get(state))
    for i in range(n):
      state, metrics = step(state, setup.put(batch_of(config, seed=i)))
      states.append(jax.device_get(state))
      values.append(float(metrics["loss"]))
  return setup, step, states, values
