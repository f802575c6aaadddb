import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers import constrain
from model.layers.attention import Attention
from model.layers.block import Block, TrunkConfig
from model.layers.mlp import Mlp
from model.layers.norm import Norm
from tests.model.layers.filled import filled

KEY = jax.random.key(0)
CONFIG = TrunkConfig(width=8, depth=3, heads=2, mlp=16)
MASKS = {"text": jnp.asarray([[1, 1, 0]] * 4, bool), "image": None}
ROUTED = jnp.ones((4, 5), bool)


def streams():
  a, b = jax.random.split(KEY)
  text, image = jax.random.normal(a, (4, 3, 8)), jax.random.normal(b, (4, 2, 8))
  return {"text": text, "image": image}


class Recorder(nn.Module):
  """Stands for a sparse MLP: multiplies by 2 and reports what it was given."""

  @nn.compact
  def __call__(self, x, mask, modality, train):
    assert modality == (("image", 2), ("text", 3))
    return 2 * x, {"x": x, "mask": mask, "train": jnp.asarray(train)}


@pytest.fixture(scope="module")
def dense():
  """Returns (parameters, apply(params, names)) of a dense block."""
  params = filled(Block(CONFIG), streams(), MASKS, None)

  def apply(params, names):
    x, masks = ({m: part[m] for m in names} for part in (streams(), MASKS))
    return Block(CONFIG).apply(params, x, masks, None)

  return params, jax.jit(apply, static_argnums=1)


def test_modalities_share_weights_but_not_attention(dense):
  params, apply = dense
  both, aux = apply(params, ("text", "image"))
  assert aux == {}
  for m in both:
    alone, _ = apply(params, (m,))
    np.testing.assert_allclose(alone[m], both[m], atol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_norms_after_the_sums_and_scales_of_the_branches(dense, scale):
  own = dense[0]["params"]
  config = dataclasses.replace(CONFIG, norm_after=not scale, layer_scale=scale)
  block = Block(config)
  if scale:
    own = own | {"scale1": jnp.full(8, scale), "scale2": jnp.full(8, 2 * scale)}
  shapes = jax.eval_shape(lambda: block.init(KEY, streams(), MASKS, None)["params"])
  assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, shapes)

  def by_hand(own, y, mask):
    norm = lambda i, y: Norm().apply({"params": own[f"norm{i}"]}, y)  # noqa: E731
    attention = lambda y: Attention(2).apply({"params": own["attention"]}, y, mask)[0]  # noqa: E731
    mlp = lambda y: Mlp(16).apply({"params": own["mlp"]}, y)[0]  # noqa: E731
    for i, part in ((1, attention), (2, mlp)):
      y = y + i * scale * part(norm(i, y)) if scale else norm(i, y + part(y))
    return y

  @jax.jit
  def both(own):
    x, _ = block.apply({"params": own}, streams(), MASKS, None)
    return x, {m: by_hand(own, y, MASKS[m]) for m, y in streams().items()}

  got, want = both(own)
  for m in want:
    np.testing.assert_allclose(got[m], want[m], atol=1e-5)
  with pytest.raises(ValueError, match=r"layer_scale = -1, expected above 0"):
    dataclasses.replace(CONFIG, layer_scale=-1)


def test_a_sparse_mlp_gets_all_tokens_in_alphabetical_order(dense):
  params, apply = dense
  block = Block(CONFIG, moe=Recorder, train=True)
  shared = {k: v for k, v in params["params"].items() if k != "mlp"}
  shapes = jax.eval_shape(lambda: block.init(KEY, streams(), MASKS, ROUTED)["params"])
  assert jax.tree.map(jnp.shape, shared) == jax.tree.map(jnp.shape, shapes)
  run = jax.jit(lambda p: block.apply({"params": p}, streams(), MASKS, ROUTED))
  x, aux = run(shared)
  assert bool(aux["train"]) and bool(aux["mask"].all())
  silent = {**shared, "mlp": jax.tree.map(jnp.zeros_like, params["params"]["mlp"])}
  middle, _ = apply({"params": silent}, ("text", "image"))
  want = {"image": 2 * aux["x"][:, :2], "text": 2 * aux["x"][:, 2:]}
  for m in want:
    np.testing.assert_allclose(x[m], middle[m] + want[m], atol=1e-5)


def test_drop_path_keeps_the_residual_and_acts_in_training_only(dense):
  params, apply = dense

  def run(train):
    block = Block(CONFIG, train=train, rate=0.99999)
    return block.apply(params, streams(), MASKS, None, rngs={"dropout": KEY})

  train, _ = jax.jit(run, static_argnums=0)(True)
  np.testing.assert_array_equal(train["text"], streams()["text"])
  test, _ = jax.jit(run, static_argnums=0)(False)
  np.testing.assert_array_equal(
    test["text"], apply(params, ("text", "image"))[0]["text"]
  )


def test_dropout_changes_with_its_key(dense):
  block = Block(TrunkConfig(width=8, depth=3, heads=2, mlp=16, dropout=0.5), train=True)

  @jax.jit
  def run(key):
    rngs = {"dropout": key}
    return block.apply(dense[0], streams(), MASKS, None, rngs=rngs)[0]["image"]

  np.testing.assert_array_equal(run(KEY), run(KEY))
  assert not np.allclose(run(KEY), run(jax.random.key(1)))


def test_drop_path_grows_linearly():
  config = TrunkConfig(depth=3, drop_path=0.2)
  assert [config.drop_path_rate(i) for i in range(3)] == [0, 0.1, 0.2]
  assert TrunkConfig(depth=1, drop_path=0.2).drop_path_rate(0) == 0


@pytest.mark.parametrize(
  ("change", "match"),
  [
    (dict(heads=5), r"width = 384 is not divisible .*\(384 % 5 = 4\)"),
    (dict(depth=0), "depth = 0"),
    (dict(norm="batch"), "norm = 'batch'"),
    (dict(attention="flash"), "attention = 'flash'"),
    (dict(drop_path=1.0), r"drop_path = 1\.0"),
  ],
)
def test_trunk_errors(change, match):
  with pytest.raises(ValueError, match=match):
    TrunkConfig(**change)


def test_constrain_splits_the_batch_over_the_mesh_and_otherwise_does_nothing():
  x = jnp.ones((8, 2, 4))
  assert constrain.batch(x) is x
  axes = ("data", "fsdp", "expert", "tensor")
  types = (jax.sharding.AxisType.Auto,) * 4
  with jax.set_mesh(jax.make_mesh((2, 2, 1, 2), axes, axis_types=types)):
    spec = jax.sharding.PartitionSpec(("data", "fsdp"))
    assert jax.jit(constrain.batch)(x).sharding.spec == spec
    odd = jnp.ones((6, 2))
    assert constrain.batch(odd) is odd
    manual = jax.shard_map(constrain.batch, in_specs=spec, out_specs=spec)
    np.testing.assert_array_equal(jax.jit(manual)(x), x)
