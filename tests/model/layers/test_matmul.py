"""The flattened product equals jax.lax.dot_general, in value and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers import matmul


@pytest.mark.parametrize(
  ("lhs", "rhs", "dims"),
  [
    ((2, 3, 4), (4, 5), (((2,), (0,)), ((), ()))),
    ((2, 3, 4), (4, 2, 5), (((2,), (0,)), ((), ()))),
    ((2, 3, 2, 4), (2, 4, 5), (((2, 3), (0, 1)), ((), ()))),
    ((2, 3, 4), (5, 4), (((2,), (1,)), ((), ()))),
    ((2, 3, 4), (2, 4, 5), (((2,), (1,)), ((0,), (0,)))),
  ],
)
def test_equals_the_plain_product(lhs, rhs, dims):
  a, b = (
    jax.random.normal(jax.random.key(i), s, jnp.float32)
    for i, s in enumerate((lhs, rhs))
  )

  def total(f):
    return jax.value_and_grad(lambda a, b: jnp.sum(jnp.sin(f(a, b, dims))), (0, 1))

  value, grads = total(matmul.dot_general)(a, b)
  expected, expected_grads = total(jax.lax.dot_general)(a, b)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  for g, e in zip(grads, expected_grads):
    np.testing.assert_allclose(g, e, rtol=1e-5, atol=1e-6)


def test_tokens_are_one_matrix_to_the_compiler():
  def f(x, w):
    return matmul.dot_general(x, w, (((2,), (0,)), ((), ())))

  x, w = jnp.ones((2, 3, 4)), jnp.ones((4, 5))
  shapes = [
    tuple(v.aval.shape for v in eqn.invars)
    for eqn in jax.make_jaxpr(f)(x, w).eqns
    if eqn.primitive.name == "dot_general"
  ]
  assert shapes == [((6, 4), (4, 5))]
