"""The MLP's activations, against their formulas."""

import math

import jax
import numpy as np
import pytest

from model.layers.mlp import ACTIVATIONS, Mlp
from tests.model.layers.filled import filled

FORMULAS = {
  "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
  "gelu_tanh": lambda x: (
    x * 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
  ),
  "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_mlp_is_two_matrices_around_the_activation(name):
  x = np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)
  mlp = Mlp(5, name)
  params = filled(mlp, x)
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params["params"])
  hidden = x @ p["up"]["kernel"] + p["up"]["bias"]
  want = np.vectorize(FORMULAS[name])(hidden) @ p["down"]["kernel"] + p["down"]["bias"]
  y, bias = mlp.apply(params, x)
  np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
  assert bias is params["params"]["down"]["bias"]
