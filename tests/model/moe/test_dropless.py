"""Dropless dispatch against the one with slots, where nothing overflows."""

import functools

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh
import numpy as np
import pytest

from model.moe import dropless
from model.moe.config import MoeConfig
from model.moe.layer import MoeMlp
from model.types import MESH_AXES

B, W, M, E = 4, 8, 12, 4
MODALITY = (("image", 5), ("text", 3))
KEY = jax.random.key(7)
QUICK = {"xla_backend_optimization_level": 0}


def _layer(k, dispatch, kernel="auto"):
  config = MoeConfig(
    experts=E,
    k=k,
    group=2,
    capacity=E / k,
    capacity_eval=E / k,
    dispatch=dispatch,
    dropless_kernel=kernel,
    losses=(("importance", 1.0), ("load", 1.0), ("local_entropy_text", 1.0)),
  )
  return MoeMlp(config, mlp=M)


@pytest.fixture(scope="module")
def data():
  rng = np.random.default_rng(0)
  # What the tokens have in common crowds some experts, and leaves others empty.
  x = jnp.asarray(rng.standard_normal((B, 8, W)) + 1, jnp.float32)
  mask = jnp.asarray(rng.random((B, 8)) < 0.8)
  layer = _layer(1, "gather")
  params = jax.jit(lambda key: layer.init(key, x, mask, MODALITY)["params"])(KEY)
  # Biases that are not nearly 0, so that a wrong expert's would show.
  bias = jax.tree.map(
    lambda p: p + rng.standard_normal(p.shape).astype(np.float32) * (p.ndim == 2),
    params["experts"],
  )
  return params | {"experts": bias}, x, mask


@pytest.fixture(autouse=True)
def _kernels_may_promote():
  # Megablox is JAX's own code, and adds an int to a bool.
  with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
    yield


@functools.cache
def _step(k, dispatch, kernel="auto"):
  layer = _layer(k, dispatch, kernel)

  def loss(params, x, mask):
    rngs = {"router": KEY}
    args = x, mask, MODALITY
    y, aux = layer.apply({"params": params}, *args, train=True, rngs=rngs)
    total = sum(v for name, v in aux.items() if name.startswith("losses/"))
    return jnp.sum(jnp.sin(y)) + total, (y, aux)

  step = jax.value_and_grad(loss, (0, 1), has_aux=True)
  return jax.jit(step, compiler_options=QUICK)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(
  ("dispatch", "kernel"),
  [("einsum", "auto"), ("dropless", "ragged_dot"), ("dropless", "megablox")],
)
def test_all_dispatches_agree_where_nothing_overflows(data, k, dispatch, kernel):
  expected = _step(k, "gather")(*data)
  assert float(expected[0][1][1]["served/text"]) == 1
  actual = _step(k, dispatch, kernel)(*data)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
    actual,
    expected,
  )


def test_the_kernel_runs_on_a_mesh(data):
  grid = mesh_utils.create_device_mesh((2, 1, 2, 2), jax.devices())
  mesh = Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 4)
  params, x, mask = data
  args = params, jnp.tile(x, (2, 1, 1)), jnp.tile(mask, (2, 1))  # a group per device
  expected = _step(2, "gather")(*args)
  with jax.set_mesh(mesh):
    actual = _step.__wrapped__(2, "dropless", "megablox")(*args)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
    actual,
    expected,
  )


@pytest.mark.parametrize("kernel", ["ragged_dot", "megablox"])
def test_what_padding_holds_changes_nothing(data, kernel):
  params, x, mask = data
  step = _step(2, "dropless", kernel)
  clean = step(params, x, mask)
  dirty = step(params, jnp.where(mask[..., None], x, jnp.nan), mask)
  jax.tree.map(np.testing.assert_array_equal, clean, dirty)
  (_, (y, _)), (_, to_x) = clean
  np.testing.assert_array_equal(np.asarray(y)[~np.asarray(mask)], 0.0)
  np.testing.assert_array_equal(np.asarray(to_x)[~np.asarray(mask)], 0.0)


@jax.custom_vjp
def _poisoned(rows, kernel, sizes):
  """A grouped matmul that leaves rubbish in the rows that are nobody's."""
  nobody = jnp.arange(len(rows))[:, None] >= jnp.sum(sizes)
  return jnp.where(nobody, jnp.nan, jax.lax.ragged_dot(rows, kernel, sizes))


def _poisoned_forward(rows, kernel, sizes):
  return _poisoned(rows, kernel, sizes), (rows, kernel, sizes)


def _poisoned_backward(kept, d):
  rows, kernel, sizes = kept
  nobody = jnp.arange(len(rows))[:, None] >= jnp.sum(sizes)
  _, pull = jax.vjp(lambda r, k: jax.lax.ragged_dot(r, k, sizes), rows, kernel)
  to_rows, to_kernel = pull(d)
  return jnp.where(nobody, jnp.nan, to_rows), to_kernel, None


_poisoned.defvjp(_poisoned_forward, _poisoned_backward)


def test_rows_of_nobody_may_hold_anything(data, monkeypatch):
  expected = _step(2, "dropless", "ragged_dot")(*data)
  monkeypatch.setattr(dropless, "_matmul", lambda kernel, interpret: _poisoned)
  actual = _step.__wrapped__(2, "dropless", "ragged_dot")(*data)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), actual, expected
  )


def test_sort_is_the_definition():
  rng = np.random.default_rng(1)
  expert = rng.integers(0, 6, (9, 2)).astype(np.int32)  # of 5: the sixth is nobody
  expert[expert == 3] = 4  # an expert without tokens
  slot, entry, own, sizes = jax.jit(dropless.sort, static_argnums=1)(expert, 5)
  queue = [(e, i) for e in range(5) for i, f in enumerate(expert.ravel()) if f == e]
  assert own.tolist() == sorted(expert.ravel())
  assert sizes.tolist() == [np.sum(expert == e) for e in range(5)]
  assert entry.tolist() == [i for _, i in queue] + [18] * (18 - len(queue))
  for row, (_, i) in enumerate(queue):
    assert int(slot.ravel()[i]) == row
  np.testing.assert_array_equal(np.asarray(slot)[expert == 5], 18)


def test_the_kernel_is_what_the_device_does_well():
  choose = functools.partial(dropless.choose, "auto")
  assert choose("tpu", "TPU v5p") == choose("tpu", "TPU v5") == "ragged_dot"
  for kind in ("TPU v4", "TPU v5 lite", "TPU v6 lite", "TPU7x"):
    assert choose("tpu", kind) == "megablox"
  assert dropless.choose("megablox", "cpu", "cpu") == "megablox"
  with pytest.raises(
    ValueError, match=r"on NVIDIA H200: jax\.lax\.ragged_dot computes"
  ):
    choose("gpu", "NVIDIA H200")
  with pytest.raises(ValueError) as error:
    choose("cpu", "cpu")
  for word in ("dispatch = 'dropless' on cpu", "every expert", "dropless_kernel"):
    assert word in str(error.value)


def test_a_device_without_a_kernel_refuses_when_routing_not_when_initialising(data):
  layer = _layer(1, "dropless")
  params, x, mask = data
  jax.eval_shape(lambda: layer.init(KEY, x, mask, MODALITY))
  with pytest.raises(ValueError, match="dropless_kernel"):
    jax.eval_shape(lambda: layer.apply({"params": params}, x, mask, MODALITY))


def test_capacity_does_not_apply(data):
  params, x, mask = data
  outputs = []
  for capacity in (E, 0.01):
    config = MoeConfig(
      experts=E,
      group=2,
      dispatch="dropless",
      dropless_kernel="ragged_dot",
      capacity=capacity,
      capacity_eval=capacity,
    )
    layer = MoeMlp(config, mlp=M)
    apply = jax.jit(
      lambda p, layer=layer: layer.apply({"params": p}, x, mask, MODALITY)
    )
    y, aux = apply(params)
    assert float(aux["served/image"]) == float(aux["served/text"]) == 1
    outputs.append(y)
  np.testing.assert_array_equal(*outputs)
