"""Experts' kernels are gathered over fsdp before their product; gradients are not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers import constrain
from sharding import mesh as meshes

KERNEL = np.arange(4 * 6 * 8, dtype=np.float32).reshape(4, 6, 8)


def total(kernel):
  return jnp.sum(jnp.sin(constrain.gathered(kernel, "expert", None, "tensor")))


def constraints(axes, shape=KERNEL.shape):
  """Returns the specs of the sharding constraints of the gradient's program."""
  with jax.set_mesh(meshes.make(axes)):
    jaxpr = jax.make_jaxpr(jax.grad(total))(jnp.zeros(shape))
  return re.findall(r"spec=(P\(.*?\))\)", str(jaxpr))


@pytest.mark.parametrize(
  ("axes", "shape", "want"),
  [
    (dict(fsdp=2, expert=4), (4, 6, 8), "P('expert', None, 'tensor')"),
    (dict(fsdp=2, expert=2, tensor=2), (4, 6, 8), "P('expert', None, 'tensor')"),
    (dict(fsdp=2, expert=4), (3, 6, 8), "P(None, None, 'tensor')"),
    (dict(fsdp=2, data=1, expert=1, tensor=4), (4, 6, 6), "P('expert', None, None)"),
  ],
)
def test_a_kernel_is_whole_over_fsdp_and_split_where_it_divides(axes, shape, want):
  assert constraints(axes, shape) == [want]  # of the kernel, not of its gradient


def test_without_fsdp_nothing_changes():
  assert constraints(dict(data=2, expert=4)) == []
  assert constraints(dict(tensor=8)) == []


def test_value_and_gradient_are_the_kernels():
  with jax.set_mesh(meshes.make(dict(fsdp=2, expert=4))):
    value, grad = jax.jit(jax.value_and_grad(total))(KERNEL)
  np.testing.assert_allclose(value, np.sin(KERNEL).sum(), rtol=1e-5)
  np.testing.assert_allclose(grad, np.cos(KERNEL), atol=1e-6)
