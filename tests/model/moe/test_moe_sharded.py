"""8 devices against 1: the same value and gradient, with only the planned exchange."""

import re

import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest

from model.moe.config import MoeConfig
from model.moe.layer import MoeMlp
from model.types import BATCH_AXES, MESH_AXES
from tools import hlo_collectives, hlo_text

P = PartitionSpec
B, W, M, E = 16, 8, 16, 8
MODALITY = (("image", 6), ("text", 4))
N = 10
KEY = jax.random.key(5)
QUICK = {"xla_backend_optimization_level": 0}  # halves the time that compiling takes
SPECS = {
  "router": {"kernel": P()},
  "experts": {
    "up": {"kernel": P("expert", "fsdp", "tensor"), "bias": P("expert", "tensor")},
    "down": {"kernel": P("expert", "tensor", "fsdp"), "bias": P("expert")},
  },
}


def _mesh(data=1, fsdp=1, expert=1, tensor=1):
  sizes = (data, fsdp, expert, tensor)
  devices = jax.devices()[: int(np.prod(sizes))]
  grid = mesh_utils.create_device_mesh(sizes, devices)
  return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 4)


def _layer(k, capacity, dispatch="gather", pieces=1):
  config = MoeConfig(
    experts=E,
    k=k,
    group=2,
    capacity=capacity,
    dispatch=dispatch,
    pieces=pieces,
    dropless_kernel="ragged_dot",
    losses=(
      ("importance", 1.0),
      ("load", 1.0),
      ("local_entropy_text", 1.0),
      ("global_entropy_image", 1.0),
    ),
    min_experts=(("image", 7.9),),
  )
  return MoeMlp(config, mlp=M)


@pytest.fixture(scope="module")
def data():
  rng = np.random.default_rng(0)
  # What the tokens have in common crowds some experts.
  x = jnp.asarray(rng.standard_normal((B, N, W)) + 1, jnp.float32)
  mask = jnp.asarray(rng.random((B, N)) < 0.8)
  init = jax.jit(lambda key: _layer(1, 1.0).init(key, x, mask, MODALITY)["params"])
  return init(KEY), x, mask


def _step(layer):
  def loss(params, x, mask):
    y, aux = layer.apply(
      {"params": params},
      x,
      mask,
      MODALITY,
      train=True,
      rngs={"router": KEY},
    )
    total = sum(v for name, v in aux.items() if name.startswith("losses/"))
    return jnp.mean(jnp.sin(y)) + total, (y, aux)

  return jax.value_and_grad(loss, (0, 1), has_aux=True)


@pytest.fixture(scope="module")
def single(data):
  results = {}

  def get(k, capacity):
    if (k, capacity) not in results:
      step = jax.jit(_step(_layer(k, capacity)), compiler_options=QUICK)
      results[k, capacity] = step(*data)
    return results[k, capacity]

  return get


def _sharded(layer, mesh, data):
  """Returns the results on the mesh and the compiled program's text."""
  params, x, mask = data
  split = NamedSharding(mesh, P(BATCH_AXES))
  own = jax.tree.map(
    lambda spec: NamedSharding(mesh, spec), SPECS, is_leaf=lambda s: isinstance(s, P)
  )
  with jax.set_mesh(mesh):
    args = jax.device_put(params, own), *jax.device_put((x, mask), split)
    step = jax.jit(_step(layer), out_shardings=(None, (own, split)))
    compiled = step.lower(*args).compile(QUICK)
    return compiled(*args), compiled.as_text()


@pytest.mark.parametrize(
  ("sizes", "k", "capacity", "dispatch"),
  [
    (dict(data=2, expert=4), 1, 0.7, "gather"),
    (dict(data=2, expert=4), 2, 0.7, "einsum"),
    (dict(data=2, fsdp=2, expert=2), 2, 0.7, "gather"),
    (dict(expert=4, tensor=2), 2, 4.0, "gather"),
    (dict(data=2, fsdp=2, tensor=2), 1, 0.7, "gather"),
  ],
)
def test_eight_devices_equal_one(data, single, sizes, k, capacity, dispatch):
  actual, text = _sharded(_layer(k, capacity, dispatch), _mesh(**sizes), data)
  expected = single(k, capacity)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected
  )
  served = float(expected[0][1][1]["served/image"])
  assert (served < 1) == (capacity < 1), "the case must overflow, or not"
  collectives = re.findall(r" ([a-z-]+?)(?:-start)?\(", text)
  # Out and home, forwards and backwards; no tokens are gathered or scattered otherwise.
  exchanges = 4 if sizes.get("expert", 1) > 1 else 0
  assert collectives.count("all-to-all") == exchanges
  gathered = re.findall(r"= f32\[([\d,]+)\]\S* all-gather", text)
  assert collectives.count("all-gather") == len(gathered)
  assert bool(gathered) == ("fsdp" in sizes)
  kernel = E * W * M // sizes.get("expert", 1) // sizes.get("tensor", 1)
  assert {np.prod([int(n) for n in dims.split(",")]) for dims in gathered} <= {kernel}
  assert "collective-permute" not in collectives


def test_slots_in_pieces_are_exchanged_piece_by_piece_and_kernels_once(data, single):
  mesh = _mesh(data=2, fsdp=2, expert=2)
  actual, text = _sharded(_layer(2, 4.0, pieces=2), mesh, data)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, single(2, 4.0)
  )
  found = hlo_collectives.find(hlo_text.parse(text), dict(mesh.shape))
  sent = [c.bytes for c in found if c.kind == "all-to-all"]
  # 20 slots are 3 tiles of 8 rows: 8 and 12, of 8 experts in f32; half of them leave.
  half = E * W * 4 // 2
  assert sorted(sent) == 4 * [8 * half] + 4 * [12 * half]
  _, whole = _sharded(_layer(2, 4.0), mesh, data)
  assert text.count(" all-gather(") == whole.count(" all-gather(")


@pytest.mark.parametrize(
  ("sizes", "k"),
  [
    (dict(data=2, fsdp=2, expert=2), 2),
    (dict(data=2, expert=2, tensor=2), 3),
    (dict(data=4, fsdp=2), 1),
    (dict(expert=8), 1),
  ],
)
def test_dropless_on_eight_devices_equals_slots_enough_on_one(data, single, sizes, k):
  actual, text = _sharded(_layer(k, 1.0, "dropless"), _mesh(**sizes), data)
  expected = single(k, E / k)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected
  )
  assert float(expected[0][1][1]["served/image"]) == 1
  # Tokens move over `expert` alone: gathered before the experts, summed behind them.
  assert ("reduce-scatter" in text) == (sizes.get("expert", 1) > 1)
  assert "all-to-all" not in text


def test_dropless_gathers_a_hidden_width_that_tensor_does_not_divide(data, single):
  params, x, mask = data
  odd = jax.tree.map(lambda p: p, params)
  odd["experts"]["up"] = jax.tree.map(lambda p: p[..., :15], params["experts"]["up"])
  odd["experts"]["down"]["kernel"] = params["experts"]["down"]["kernel"][:, :15]
  layer = MoeMlp(_layer(1, 8.0, "dropless").config, mlp=15)
  expected = jax.jit(_step(layer))(odd, x, mask)
  with jax.set_mesh(_mesh(data=4, tensor=2)):
    actual = jax.jit(_step(layer))(odd, x, mask)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected
  )


def test_a_mesh_that_does_not_fit_is_named(data):
  params, x, mask = data
  layer = _layer(1, 1.0)

  def apply(examples):
    args = x[:examples], mask[:examples], MODALITY
    return jax.eval_shape(lambda: layer.apply({"params": params}, *args))

  with jax.set_mesh(_mesh(data=2, expert=4)):
    with pytest.raises(ValueError) as error:
      apply(12)
    assert "6 routing groups" in str(error.value) and "6 % 8 = 6" in str(error.value)
    # To initialise, any batch will do.
    jax.eval_shape(lambda key: layer.init(key, x[:1], mask[:1], MODALITY), KEY)
  with jax.set_mesh(_mesh(expert=3)), pytest.raises(ValueError, match=r"8 % 3 = 2"):
    apply(12)
