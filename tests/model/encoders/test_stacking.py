import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.encoders import config as configs
from model.encoders import stacking, towers, trunk
from tests.model.encoders.models import batch_of, small
from tests.model.layers.filled import filled

RNGS = {"dropout": jax.random.key(1), "router": jax.random.key(2)}


@pytest.mark.parametrize(
  ("pattern", "period"),
  [((0, 0, 0), 1), ((0, 1, 0, 1), 2), ((0, 0, 1, 0, 0), 5), ((0, 1, 1, 0, 1, 1), 3)],
)
def test_smallest_period(pattern, period):
  assert trunk.smallest_period(pattern) == period


@pytest.mark.parametrize(
  ("sparse", "depth", "scans"),
  [
    ((), 3, ((0, 1, 3),)),
    ((1, 3, 5, 7), 8, ((0, 2, 4),)),
    ((15, 17, 19, 21, 23), 24, ((0, 1, 14), (14, 2, 5))),  # LIMoE L/16
    (tuple(range(9, 32, 2)), 32, ((0, 1, 8), (8, 2, 12))),  # LIMoE H/14
    ((2, 3), 4, ((0, 1, 2), (2, 1, 2))),
    ((0,), 1, ((0, 1, 1),)),
  ],
)
def test_scans_repeat_the_least_code(sparse, depth, scans):
  pattern = tuple(i in sparse for i in range(depth))
  assert trunk.scans(pattern) == scans


@pytest.fixture(scope="module", params=[(), (2, 4)], ids=["one scan", "two scans"])
def deep(request):
  config = small(modalities=("text",))
  config.trunk.depth = 5 if request.param else 4
  config.moe.layers = request.param
  # No random numbers: those of a scan are others.
  config.moe.update(dict(noise=0.0))
  config.moe.losses.load = 0.0
  net = towers.build(config)
  return net, filled(net, configs.example(config))


def test_scan_equals_unrolled_in_value_and_gradient(deep):
  net, params = deep
  batch = batch_of(("text",))

  def run(net):
    def loss(params):
      encoded, aux = net.apply({"params": params}, batch, train=True, rngs=RNGS)
      total = sum(jnp.sum(jnp.square(e.pooled)) for e in encoded.values())
      total += sum(v for k, v in aux.items() if k.startswith("losses/"))
      return total, (encoded, aux)

    return jax.jit(jax.grad(loss, has_aux=True))

  grads, want = run(net)(params["params"])
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    silent = jax.tree_util.keystr(path).endswith(
      "['key']['bias']"
    )  # cancels in softmax
    assert silent or np.any(np.asarray(g) != 0), path
  stacked = stacking.stack_layers(params["params"])
  scanned_grads, got = run(net.clone(scan=True, remat="dots"))(stacked)
  sparse = {f"layer{i:02d}" for i in net.moe.blocks(net.modalities[0].trunk.depth)}
  assert {k.split("/")[2] for k in want[1] if "metrics" in k} == sparse
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), got, want)
  scanned_grads = stacking.unstack_layers(scanned_grads)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4),
    scanned_grads,
    grads,
  )


def test_scanned_parameters_have_a_leading_axis_and_the_same_names(deep):
  net, params = deep
  example = batch_of(("text",))
  shapes = jax.eval_shape(
    lambda: net.clone(scan=True).init(jax.random.key(0), example)["params"]
  )
  stacked = stacking.stack_layers(params["params"])
  assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes)
  scans = {k: set(v) for k, v in stacked["trunk"].items() if k != "norm"}
  if net.moe.layers:
    assert scans == {"blocks": {"block_00"}, "blocks_01": {"block_01", "block_02"}}
    sparse = stacked["trunk"]["blocks_01"]["block_02"]
  else:
    assert scans == {"blocks": {"block_00", "block_01"}}
    sparse = stacked["trunk"]["blocks"]["block_01"]
  assert sparse["moe"]["experts"]["up"]["kernel"].shape == (2, 4, 16, 16)


def test_unstack_undoes_stack_in_every_trunk(deep):
  _, params = deep
  two = {"towers": {"trunk_a": params["params"]["trunk"], "x": jnp.ones(2)}, "b": {}}
  back = stacking.unstack_layers(stacking.stack_layers(two))
  assert jax.tree.structure(back) == jax.tree.structure(two)
  jax.tree.map(np.testing.assert_array_equal, back, two)


def test_layers_of_a_scan_start_from_different_weights_and_drop_differently():
  config = small(every=0, modalities=("text",), scan=True)
  config.trunk.update(dict(drop_path=0.5, depth=3))
  net = towers.build(config)
  batch = batch_of(("text",), b=16)

  @jax.jit
  def run(key):
    params = net.init(key, batch)["params"]
    encoded, _ = net.apply({"params": params}, batch, train=True, rngs=RNGS)
    plain, _ = net.apply({"params": params}, batch)
    return params, encoded["text"].pooled, plain["text"].pooled

  params, dropped, plain = run(jax.random.key(0))
  kernel = params["trunk"]["blocks"]["block_00"]["mlp"]["up"]["kernel"]
  assert kernel.shape == (3, 16, 16)
  assert not np.allclose(kernel[0], kernel[1])
  assert not np.allclose(dropped, plain)


def test_more_than_a_hundred_blocks_keep_their_order():
  blocks = {f"block_{i:02d}": {"x": jnp.full(1, i)} for i in range(102)}
  stacked = stacking.stack_layers(blocks)["blocks"]["block_00"]["x"]
  np.testing.assert_array_equal(stacked[:, 0], np.arange(102))
