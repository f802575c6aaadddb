import math

import jax
import pytest

from configs import base
from model.encoders import config as configs
from model.encoders import count, towers
from tests.model.encoders.models import small


@pytest.mark.parametrize("shared", [True, False])
def test_table_counts_what_init_makes(shared):
  config = small(shared=shared, modalities=("image", "text"))
  config.trunk.depth = 5
  config.moe.every, config.moe.layers = 0, (1, 2, 4)
  config.moe.k = 2
  if not shared:
    config.modalities.text.trunk.width = 8
  net = towers.build(config)
  params = jax.eval_shape(net.init, jax.random.key(0), configs.example(config))[
    "params"
  ]
  table = count.parameter_table(config)
  parts = {
    m: sum(math.prod(a.shape) for a in jax.tree.leaves(p)) for m, p in params.items()
  }
  assert table.parts == parts and table.total == sum(parts.values())
  experts = [
    math.prod(a.shape)
    for path, a in jax.tree_util.tree_leaves_with_path(params)
    if "experts" in jax.tree_util.keystr(path)
  ]
  assert table.active == table.total - sum(experts) // 2  # k / E = 2 / 4
  assert len(experts) == 3 * 4 * (1 if shared else 2)


def limoe(width, depth, mlp, heads, patch, layers):
  c = base.get_config().model
  c.shared_trunk = True
  c.embed_dim = width
  c.trunk.update(dict(width=width, depth=depth, mlp=mlp, heads=heads))
  c.moe.update(dict(experts=32, layers=layers))
  c.modalities.image.update(dict(size=(224, 224, 3), patch=(patch, patch)))
  c.modalities.text.update(dict(vocab=32_000, length=16))
  return c


def test_limoe_h14_is_5_6_billion_of_which_0_675_are_active():
  table = count.parameter_table(limoe(1280, 32, 5120, 16, 14, tuple(range(9, 32, 2))))
  assert table.total == pytest.approx(5.6e9, rel=0.02)
  assert table.active == pytest.approx(0.675e9, rel=0.02)


def test_limoe_l16_is_1_7_billion_of_which_0_3_are_active():
  # Five sparse blocks are nearest to the published total; twelve would make 3.5 B.
  table = count.parameter_table(limoe(1024, 24, 4096, 16, 16, (15, 17, 19, 21, 23)))
  assert table.total == pytest.approx(1.7e9, rel=0.05)
  assert table.active == pytest.approx(0.3e9, rel=0.15)


def test_flops_by_hand():
  config = small(modalities=("image", "text"))
  config.moe.k = 2
  n, w, m, d = 4, 16, 16, 8
  block = 2 * 4 * n * w * w + 2 * 2 * n * n * w
  mlp = 2 * 2 * n * w * m
  stem = 2 * n * (4 * 4 * 3) * w
  router = 2 * n * w * 4
  want = stem + 2 * block + mlp + 2 * mlp + router + 2 * w * d
  flops = count.flops_per_example(config)
  assert flops["image"] == want and set(flops) == {"image", "text"}
  padded = count.flops_per_example(config, capacity=True)
  # Two examples of 7 tokens ask for 7.35 slots of each of 4 experts, and get 8.
  assert padded["image"] == pytest.approx(want + (4 * 8 / 14 - 2) * mlp)


@pytest.mark.parametrize("pool", ["mean", "map", "cls"])
def test_flops_agree_with_the_compiler(pool):
  config = small(every=0, modalities=("image", "text"))
  config.trunk.update(dict(width=64, mlp=256, depth=1))
  config.modalities.image.pool = pool
  net = towers.build(config)
  batch = {"image": configs.example(config, 2)["image"]}
  params = jax.eval_shape(net.init, jax.random.key(0), configs.example(config))
  run = jax.jit(lambda p, b: net.apply(p, b)[0]["image"].pooled)
  cost = run.lower(params, batch).cost_analysis()
  # The compiler also counts norms, softmax and GELU.
  ratio = cost["flops"] / (2 * count.flops_per_example(config)["image"])
  assert 1 <= ratio < 1.15


@pytest.mark.parametrize(
  ("changes", "active", "mlps", "buffers", "router"),
  [
    (dict(), 0.5, 2, 4 * 12 / 14, 1),  # 8.4 slots of each expert become 12
    (dict(dispatch="dropless"), 0.5, 2, 2, 1),
    (dict(router="expert_choice"), 0.6, 2.4, 2.4, 1),
    # 4 experts of 2 slots for the 3 tokens of a text; logits and two mixtures of each.
    (dict(router="soft", slots=2, group=1), 1, 8 / 3, 8 / 3, 6),
  ],
)
def test_each_router_has_its_own_arithmetic(changes, active, mlps, buffers, router):
  names = ("image", "text")
  config, dense = small(modalities=names), small(every=0, modalities=names)
  config.moe.update(dict(k=2, capacity=1.2))
  config.moe.losses.load = 0.0
  config.moe.update(changes)
  n, w, hidden, e = 3, 16, 16, 4
  table = count.parameter_table(config)
  experts = e * (2 * w * hidden + w + hidden)  # of the one sparse layer
  assert table.total - table.active == round(experts * (1 - active))
  without = count.flops_per_example(dense)["text"]
  for capacity, expected in ((False, mlps), (True, buffers)):
    flops = count.flops_per_example(config, capacity=capacity)["text"]
    extra = 2 * n * w * e * router + (expected - 1) * 4 * n * w * hidden
    assert flops - without == pytest.approx(extra)


def test_what_training_drops_costs_nothing():
  config = small(every=0, modalities=("image", "text"))
  whole = count.flops_per_example(config)["image"]
  half = small(every=0, modalities=("image", "text"))
  half.modalities.image.size = (4, 8, 3)
  config.modalities.image.drop_patches = 0.5
  fewer = count.flops_per_example(config)["image"]
  assert fewer == count.flops_per_example(half)["image"] < whole
  assert count.flops_per_example(config, train=False)["image"] == whole
