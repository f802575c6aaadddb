import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.encoders import config as configs
from model.encoders import towers, trunk
from model.types import Encoded
from tests.model.encoders.models import batch_of, small
from tests.model.layers.filled import filled

KEY = jax.random.key(0)
RNGS = {"dropout": jax.random.key(1), "router": jax.random.key(2)}
NAMES = ("audio", "image", "text")
TOKENS = {"audio": 8, "image": 4, "text": 3}


class Model:
  """A model with parameters, and its jitted forward pass."""

  def __init__(self, config):
    self.config = config
    self.net = towers.build(config)
    self.params = filled(self.net, configs.example(config))
    self.apply = jax.jit(self.net.apply, static_argnames="train")
    self._outputs = self.apply(self.params, batch_of())

  def __call__(self, batch=None):
    return self._outputs if batch is None else self.apply(self.params, batch)


@pytest.fixture(scope="module")
def sparse():
  return Model(small())


@pytest.fixture(scope="module")
def dense():
  return Model(small(every=0))


def equal(a, b, **kwargs):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **kwargs), a, b)


def test_every_modality_becomes_an_encoded(sparse):
  encoded, aux = sparse()
  assert tuple(encoded) == NAMES
  for m, e in encoded.items():
    assert isinstance(e, Encoded)
    assert e.pooled.shape == (4, 8) and e.pooled.dtype == jnp.float32
    assert e.tokens.shape == (4, TOKENS[m], 16)
    assert e.mask.shape == (4, TOKENS[m]) and e.mask.dtype == bool
  np.testing.assert_array_equal(encoded["text"].mask, batch_of()["text_mask"])
  assert bool(encoded["image"].mask.all()) and not bool(encoded["audio"].mask.all())
  assert all(k.startswith(("losses/moe_", "metrics/moe/layer01/")) for k in aux)
  assert "losses/moe_importance" in aux and "losses/moe_local_entropy_text" in aux
  assert "metrics/moe/layer01/effective_experts/audio" in aux
  assert aux["metrics/moe/layer01/load/text"].shape == (4,)


def test_parameter_names(sparse):
  params = sparse.params["params"]
  ends = {f"{part}_{m}" for part in ("stem", "project") for m in NAMES}
  assert set(params) == {"trunk", *ends}
  assert set(params["trunk"]) == {"block_00", "block_01", "norm"}
  assert set(params["trunk"]["block_00"]) == {"norm1", "attention", "norm2", "mlp"}
  assert set(params["trunk"]["block_01"]) == {"norm1", "attention", "norm2", "moe"}
  assert params["project_text"]["kernel"].shape == (16, 8)
  assert set(params["stem_text"]) == {"embed", "position"}
  assert {a.dtype for a in jax.tree.leaves(params)} == {np.dtype("float32")}


@pytest.mark.parametrize("names", [("text",), ("image", "audio")])
def test_any_subset_of_the_modalities(dense, names):
  encoded, aux = dense(batch_of(names))
  assert aux == {} and tuple(encoded) == tuple(sorted(names))
  equal(encoded, {m: dense()[0][m] for m in names}, atol=1e-6)


def test_knobs_of_other_houses_reach_every_layer():
  config = small(every=0, modalities=("image",))
  # A norm with such an epsilon is its bias: what comes before it has no say.
  config.trunk.update(dict(epsilon=1e30, activation="quick_gelu"))
  options = dict(stem_bias=False, stem_norm=True, project_bias=True, pool="cls")
  config.modalities.image.update(options)
  net = towers.build(config)
  batch = batch_of(("image",))
  params = filled(net, batch)
  p = params["params"]
  assert set(p["stem_image"]["embed"]) == {"kernel"}
  assert p["project_image"]["bias"].shape == (8,)
  encoded, state = net.apply(params, batch, capture_intermediates=True)
  norm = state["intermediates"]["norm_image"]["__call__"][0]
  assert norm.shape == (4, 5, 16)  # the token of "cls" has it too
  for got, name in [(norm, p["norm_image"]), (encoded[0], p["trunk"]["norm"])]:
    got = got["image"].tokens if isinstance(got, dict) else got
    equal(got, jnp.broadcast_to(name["bias"], got.shape), atol=1e-6)
  block = state["intermediates"]["trunk"]["block_00"]
  for norm in ("norm1", "norm2"):
    got = block[norm]["__call__"][0]
    equal(got, jnp.broadcast_to(p["trunk"]["block_00"][norm]["bias"], got.shape))
  up = p["trunk"]["block_00"]["mlp"]["up"]
  hidden = p["trunk"]["block_00"]["norm2"]["bias"] @ up["kernel"] + up["bias"]
  down = p["trunk"]["block_00"]["mlp"]["down"]
  want = hidden * jax.nn.sigmoid(1.702 * hidden) @ down["kernel"] + down["bias"]
  equal(block["mlp"]["__call__"][0][0][0, 0], want, atol=1e-6)
  want = encoded[0]["image"].tokens[:, 0] @ p["project_image"]["kernel"]
  want = want + p["project_image"]["bias"][None]
  equal(encoded[0]["image"].pooled, want, atol=1e-6)


def test_the_order_of_the_batch_and_its_other_keys_do_not_matter(sparse):
  batch = dict(reversed(batch_of().items())) | {"label_group": jnp.zeros(4)}
  # Without jit, which would sort the keys itself.
  shapes = jax.eval_shape(lambda: sparse.net.apply(sparse.params, batch))
  assert tuple(shapes[0]) == NAMES
  equal(sparse(batch), sparse(), rtol=0)


def test_padding_neither_attends_nor_pools_nor_routes(sparse):
  batch = batch_of()
  noisy = dict(batch)
  noisy["text"] = jnp.where(batch["text_mask"], batch["text"], 7)
  real = batch["audio_mask"][..., None]
  noisy["audio"] = jnp.where(real, batch["audio"], 50 * batch_of(seed=1)["audio"])
  assert float(jnp.abs(noisy["audio"] - batch["audio"]).max()) > 10
  assert bool((noisy["text"] != batch["text"]).any())
  (a, a_aux), (b, b_aux) = sparse(batch), sparse(noisy)
  equal(a_aux, b_aux, rtol=0)
  for m in NAMES:
    equal(a[m].pooled, b[m].pooled, rtol=0)
    mask = a[m].mask[..., None]
    equal(jnp.where(mask, a[m].tokens, 0.0), jnp.where(mask, b[m].tokens, 0.0), rtol=0)


def test_ids_of_zero_are_padding_when_no_mask_is_given(dense):
  batch = batch_of(("text",))
  zeroed = jnp.where(batch["text_mask"], batch["text"], 0)
  given = dense(batch | {"text": zeroed})
  equal(dense({"text": zeroed}), given, rtol=0)


def test_rows_that_are_not_valid_neither_route_nor_count(sparse):
  batch = batch_of() | {"valid": jnp.asarray([1, 1, 1, 0], bool)}
  other = dict(batch)
  for m in ("audio", "image"):
    other[m] = batch[m].at[3].multiply(9.0)
  (a, a_aux), (b, b_aux) = sparse(batch), sparse(other)
  equal(a_aux, b_aux, rtol=0)
  for m in NAMES:
    equal(a[m].pooled[:3], b[m].pooled[:3], rtol=0)
  assert not np.allclose(a["image"].pooled[3], b["image"].pooled[3])
  everyone = sparse(batch | {"valid": jnp.ones(4, bool)})
  equal(everyone, sparse(), rtol=1e-5, atol=1e-6)  # another program
  assert not np.allclose(everyone[1]["losses/moe_z"], a_aux["losses/moe_z"])


def test_own_trunks_follow_their_overrides_and_keep_to_their_modality():
  config = small(shared=False, modalities=("image", "text"))
  config.modalities.text.trunk.update(dict(width=8, depth=3, causal=True))
  config.modalities.text.pool = "last"
  net = towers.build(config)
  params = filled(net, configs.example(config))
  names = {"trunk_image", "trunk_text"}
  assert names < set(params["params"])
  blocks = {
    m: set(params["params"][f"trunk_{m}"]) - {"norm"} for m in ("image", "text")
  }
  assert [len(blocks[m]) for m in ("image", "text")] == [2, 3]
  assert params["params"]["project_text"]["kernel"].shape == (8, 8)
  apply = jax.jit(net.apply)
  batch = batch_of(("image", "text"))
  encoded, aux = apply(params, batch)
  assert {e.pooled.shape for e in encoded.values()} == {(4, 8)}
  # Both trunks report the same losses, which are averaged; their metrics stay apart.
  assert "metrics/moe/layer01/router_logit_scale/text" in aux
  assert "metrics/moe/layer01/load/image" in aux
  alone, alone_aux = apply(params, {m: batch[m] for m in ("image",)})
  equal(alone["image"].pooled, encoded["image"].pooled, atol=1e-6)
  _, text_aux = apply(params, batch_of(("text",)))
  mean = (alone_aux["losses/moe_z"] + text_aux["losses/moe_z"]) / 2
  np.testing.assert_allclose(aux["losses/moe_z"], mean, rtol=1e-5)


@pytest.mark.parametrize("pool", ["cls", "last", "map"])
def test_pools_in_a_tower(pool):
  config = small(every=0, modalities=("image", "text"))
  config.modalities.text.pool = pool
  config.modalities.image.pool = pool
  net = towers.build(config)
  params = filled(net, configs.example(config))
  assert ("pool_text" in params["params"]) == (pool != "last")
  encoded, _ = jax.eval_shape(net.apply, params, batch_of(("image", "text")))
  assert encoded["text"].pooled.shape == (4, 8)
  extra = pool == "cls"
  assert encoded["text"].tokens.shape == (4, 3 + extra, 16)
  assert encoded["image"].mask.shape == (4, 4 + extra)


def test_without_projection_the_pooled_tokens_come_out():
  config = small(every=0, modalities=("image",), embed_dim=16)
  config.modalities.image.project = False
  net = towers.build(config)
  params = filled(net, configs.example(config))
  assert "project_image" not in params["params"]
  encoded, _ = net.apply(params, batch_of(("image",)))
  np.testing.assert_allclose(
    encoded["image"].pooled, encoded["image"].tokens.mean(axis=1), atol=1e-6
  )


def test_bfloat16_is_close_and_keeps_f32_where_it_matters(sparse):
  net = sparse.net.clone(dtype=jnp.bfloat16)
  shapes = jax.eval_shape(lambda: net.init(KEY, batch_of()))
  assert {a.dtype for a in jax.tree.leaves(shapes)} == {np.dtype("float32")}
  encoded, aux = jax.jit(net.apply)(sparse.params, batch_of())
  assert all(a.dtype == jnp.float32 for a in aux.values())
  for m, e in encoded.items():
    assert e.tokens.dtype == jnp.bfloat16 and e.pooled.dtype == jnp.float32
    want = sparse()[0][m].pooled
    # A token that bf16 sends to another expert may differ; most do not.
    assert np.median(np.abs(e.pooled - want)) < 0.05 * np.abs(want).max()


def test_training_draws_from_both_streams(sparse):
  config = small(every=2)
  config.trunk.update(dict(dropout=0.1, drop_path=0.1))
  net = towers.build(config)

  @jax.jit
  def run(dropout, router):
    rngs = {"dropout": jax.random.key(dropout), "router": jax.random.key(router)}
    encoded, aux = net.apply(sparse.params, batch_of(), train=True, rngs=rngs)
    return encoded["text"].pooled, aux["losses/moe_load"]

  (a, load), (b, _), (_, other) = run(0, 0), run(1, 0), run(0, 1)
  assert not np.allclose(a, b) and float(load) != float(other)


def test_remat_changes_no_gradient():
  config = small(every=0, modalities=("text",))
  config.trunk.update(dict(dropout=0.1, drop_path=0.1))
  net = towers.build(config)
  batch = batch_of(("text",))
  params = filled(net, batch)

  def grad_of(remat):
    def loss(params):
      model = net.clone(remat=remat)
      encoded, _ = model.apply(params, batch, train=True, rngs=RNGS)
      return jnp.sum(jnp.square(encoded["text"].pooled))

    kept = jax.eval_shape(lambda p: jax.vjp(loss, p)[1], params)
    floats = [x for x in jax.tree.leaves(kept) if x.dtype == jnp.float32]
    size = sum(x.size for x in floats)
    jaxpr = jax.make_jaxpr(jax.grad(loss))(params)
    return jaxpr, size, jax.jit(jax.grad(loss))(params)

  plain, size, want = grad_of("none")
  assert all(
    np.any(np.asarray(g) != 0) for g in jax.tree.leaves(want["params"]["trunk"])
  )
  dots, kept = [str(plain).count("dot_general")], [size]
  for remat in ("activations", "dots", "full"):
    jaxpr, size, got = grad_of(remat)
    equal(got, want, atol=1e-4, rtol=1e-4)
    dots.append(str(jaxpr).count("dot_general"))
    kept.append(size)
  # Matmuls that run again: none, none, attention's, all.
  assert dots[0] == dots[1] < dots[2] < dots[3]
  assert kept[0] > kept[1] > kept[2] > kept[3]


def casts(jaxpr, shape):
  """Counts the f32 -> bf16 conversions of arrays of a shape, inner jaxprs included."""
  n = 0
  for e in jaxpr.eqns:
    if e.primitive.name == "convert_element_type":
      old, new = e.invars[0].aval, e.outvars[0].aval
      n += (new.shape, old.dtype, new.dtype) == (shape, jnp.float32, jnp.bfloat16)
    for value in e.params.values():
      for inner in value if isinstance(value, tuple | list) else (value,):
        inner = getattr(inner, "jaxpr", inner)
        n += casts(inner, shape) if hasattr(inner, "eqns") else 0
  return n


@pytest.mark.parametrize("scan", [False, True])
def test_a_shared_trunk_casts_its_weights_once_for_all_modalities(scan, monkeypatch):
  # Cast by each, their gradients would be summed over the devices once per modality.
  config = small(dtype="bfloat16", scan=scan)
  config.trunk.mlp = 48
  net, batch = towers.build(config), batch_of()
  params = filled(net, batch)
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))

  def run(params):
    encoded, aux = net.apply(params, batch)
    return {m: e.pooled for m, e in encoded.items()}, aux

  kernel = (1, 16, 48) if scan else (16, 48)  # of the one dense block
  assert casts(jax.make_jaxpr(run)(params).jaxpr, kernel) == 1
  got = jax.jit(run)(params)
  monkeypatch.setattr(trunk, "casting", lambda dtype: trunk.Trunk)
  want = jax.jit(lambda p: run(p))(params)
  equal(got, want, atol=1e-5, rtol=1e-5)


def test_eight_devices_give_what_one_gives(sparse):
  batch = batch_of(b=16)
  want = sparse(batch)
  axes = ("data", "fsdp", "expert", "tensor")
  types = (jax.sharding.AxisType.Auto,) * 4
  mesh = jax.make_mesh((2, 2, 2, 1), axes, axis_types=types)
  spec = jax.sharding.PartitionSpec(("data", "fsdp", "expert"))
  with jax.set_mesh(mesh):
    split = jax.device_put(batch, jax.sharding.NamedSharding(mesh, spec))
    got = jax.jit(sparse.net.apply)(sparse.params, split)
    assert got[0]["text"].tokens.sharding.spec[0] == ("data", "fsdp", "expert")
  equal(jax.device_get(got), jax.device_get(want), atol=1e-5)


def test_errors_say_what_was_expected(sparse, dense):
  with pytest.raises(ValueError, match=r"holds \['id'\].*'audio', 'image', 'text'"):
    sparse.net.apply(sparse.params, {"id": jnp.zeros(4)})
  uneven = batch_of() | {"image": batch_of(b=2)["image"]}
  with pytest.raises(ValueError, match=r"differ in their examples: .*'image': 2"):
    sparse.net.apply(sparse.params, uneven)


def test_wide_paths_add_to_the_embedding_past_the_trunk():
  plain, config = small(every=0), small(every=0)
  config.modalities.image.update(dict(gradients=(2, 2), colors=(1, 2)))
  config.modalities.text.update(dict(ngrams=4, ngram_rows=16))
  batch = batch_of()
  grams = jnp.tile(jnp.array([[3, 5, 0, 0]], jnp.int32), (4, 1))
  wide = batch | {"text": jnp.concatenate([batch["text"], grams], axis=1)}
  net = towers.build(config)
  params = filled(net, configs.example(config))
  own = {k: v for k, v in params["params"].items() if not k.startswith("wide")}
  narrow, _ = towers.build(plain).apply({"params": own}, batch)
  encoded, _ = net.apply(params, wide)
  table = params["params"]["wide_text"]["embedding"]
  added = encoded["text"].pooled - narrow["text"].pooled
  expected = jnp.broadcast_to((table[3] + table[5]) / np.sqrt(2), added.shape)
  np.testing.assert_allclose(added, expected, atol=1e-5)
  assert jnp.abs(encoded["image"].pooled - narrow["image"].pooled).max() > 1e-3
  equal(encoded["text"].tokens, narrow["text"].tokens, atol=1e-6)
  with pytest.raises(ValueError, match=r"text\.ngrams = 4"):
    net.apply(params, {"text": grams})
