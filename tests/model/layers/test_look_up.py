"""Rows by id: the plain look-up on every mesh, and what it sends under fsdp."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
import numpy as np
import pytest

from model.layers.look_up import look_up
from sharding import mesh as meshes
from sharding import rules
from tools import hlo_collectives, hlo_text

ROWS, WIDTH, BATCH = 64, 8, 16
PATH = "stem_text/embed/embedding"


def total(table, ids):
  return jnp.sum(jnp.sin(look_up(table, ids)))


def arrays(rows=ROWS, batch=BATCH):
  table = jax.random.normal(jax.random.key(0), (rows, WIDTH))
  return table, jax.random.randint(jax.random.key(1), (batch, 5), 0, rows)


@pytest.fixture(scope="module")
def compiled():
  """Returns (mesh, compiled value and gradient) of fsdp 4 and expert 2."""
  mesh = meshes.make(dict(fsdp=4, expert=2))
  return mesh, lowered(mesh, *arrays()).compile()


def lowered(mesh, table, ids):
  split = NamedSharding(mesh, rules.assign(PATH, table.shape, mesh).spec)
  with jax.set_mesh(mesh):
    grad = jax.value_and_grad(total)
    return jax.jit(grad, in_shardings=(split, None)).lower(table, ids)


def test_value_and_gradient_are_the_plain_ones(compiled):
  mesh, program = compiled
  table, ids = arrays()
  value, gradient = program(table, ids)
  expected = jax.value_and_grad(lambda t: jnp.sum(jnp.sin(t[ids])))(table)
  np.testing.assert_allclose(value, expected[0], rtol=1e-6)
  np.testing.assert_allclose(gradient, expected[1], rtol=1e-6)
  assert gradient.sharding.spec == rules.assign(PATH, table.shape, mesh).spec


def test_the_gradient_is_scattered_over_fsdp_then_summed_over_the_rest(compiled):
  mesh, program = compiled
  found = hlo_collectives.find(hlo_text.parse(program.as_text()), dict(mesh.shape))
  tables = [c for c in found if c.shape.endswith(f",{WIDTH}]")]
  assert {(c.kind, c.axes, c.shape) for c in tables} == {
    ("all-gather", ("fsdp",), f"f32[{ROWS // 4},{WIDTH}]"),
    ("reduce-scatter", ("fsdp",), f"f32[{ROWS},{WIDTH}]"),
    ("all-reduce", ("expert",), f"f32[{ROWS // 4},{WIDTH}]"),
  }


@pytest.mark.parametrize(
  ("axes", "rows", "batch"),
  [
    (dict(data=8), ROWS, BATCH),
    (dict(fsdp=4, tensor=2), ROWS, BATCH),  # the table stays split over tensor
    (dict(fsdp=8), ROWS - 1, BATCH),
    (dict(fsdp=8), ROWS, 1),  # such as one prompt
  ],
)
def test_elsewhere_it_is_left_to_the_compiler(axes, rows, batch):
  text = lowered(meshes.make(axes), *arrays(rows, batch)).as_text()
  assert "all_gather" not in text and "stablehlo.gather" in text


def test_a_frequent_row_gets_its_whole_gradient_in_bf16_too():
  table = jnp.zeros((4, 2), jnp.bfloat16)
  ids = jnp.zeros((1, 1024), jnp.int32).at[0, 0].set(3)

  def total(table):
    return jnp.sum(look_up(table, ids).astype(jnp.float32))

  got = np.asarray(jax.jit(jax.grad(total))(table).astype(jnp.float32))
  # One by one in bf16 the sum would stay at 256.
  np.testing.assert_array_equal(got[:, 0], [1024, 0, 0, 1])
