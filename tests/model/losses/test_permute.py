import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from model.losses import permute
from model.types import BATCH_AXES, MESH_AXES

B, D = 24, 3


def value_and_pull(x, index, g, **how):
  y, pull = jax.vjp(lambda x: permute.take(x, index, **how), x)
  return y, pull(g)[0]


@pytest.mark.parametrize("shape", [(2, 2, 2, 1), (1, 4, 1, 2)])
def test_a_ring_takes_what_an_index_takes(shape):
  rng = np.random.default_rng(0)
  x, g = (rng.normal(size=(B, D)).astype(np.float32) for _ in range(2))
  index = rng.integers(0, B, B).astype(np.int32)  # some rows more than once
  pulled = np.zeros_like(x)
  np.add.at(pulled, index, g)
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  mesh = jax.make_mesh(shape, MESH_AXES, axis_types=auto)
  run = jax.jit(lambda *args: value_and_pull(*args, strategy="ring"))
  with jax.set_mesh(mesh):
    split = jax.NamedSharding(mesh, P(BATCH_AXES))
    args = jax.device_put((x, index, g), split)
    text = run.lower(*args).as_text()
    y, dx = run(*args)
  np.testing.assert_array_equal(y, x[index])
  np.testing.assert_allclose(dx, pulled, rtol=1e-6, atol=1e-6)
  assert "collective_permute" in text and "all_gather" not in text


def test_one_device_needs_no_ring():
  x = np.arange(6, dtype=np.float32).reshape(3, 2)
  index = np.array([2, 0, 2], np.int32)
  np.testing.assert_array_equal(permute.take(x, index, strategy="ring"), x[index])
