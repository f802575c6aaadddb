"""Packed towers are the unpacked ones: values, gradients, on any devices, and alone."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from configs import base
from input_pipeline import packing as planner
from model.encoders import config as configs
from model.encoders import count, towers
from model.layers import packing, stochastic
from model.objectives import parts
from sharding import mesh as mesh_lib
from tests.model.encoders.models import AUDIO, small
from tests.model.layers.filled import filled
from training import step as step_lib

N, B = 8, 32
POOLS = ("cls", "first", "last", "map", "mean")
PACK = dict(tokens=5, rows=2, group=2)


def model(texts, shared=True, every=0, depth=1, others=(), **changes):
  """Texts of some pools, each a modality, and of others what is named."""
  c = small(shared, every, others, **changes)
  c.trunk.depth = depth
  for pool in texts:
    c.modalities[f"text_{pool}"] = base.modality(
      stem="tokens", vocab=9, length=N, pool=pool, registers=pool == "cls", pack=PACK
    )
  if "audio" in others:
    c.modalities.audio = base.modality(**AUDIO, pack=dict(tokens=6, rows=2, group=4))
  c.moe.update(dict(capacity=9.0, capacity_eval=9.0, noise=0.0))
  c.moe.losses.load = 0.0
  return c


def loaded(c, b=B, seed=0):
  """Returns a batch as the loader gives it: packed, what was too long cut."""
  rng = np.random.default_rng(seed)
  batch = {"valid": np.arange(b) != 2}
  for name, m in c.modalities.items():
    if m.stem == "tokens":
      mask = np.arange(N) < rng.integers(0, N + 1, (b, 1))
      mask[5, 0] = True
      ids = rng.integers(1, 9, (b, N)).astype(np.int32)
      batch |= {name: np.where(mask, ids, 0), f"{name}_mask": mask}
    else:
      shape = (b, *m.size[: 2 if m.size[-1] == 1 else 3])
      batch[name] = rng.standard_normal(shape).astype(np.float32)
  batch["audio_mask"] = np.arange(8) < rng.integers(1, 9, (b, 1))
  config = dataclasses.make_dataclass("C", ["model", "data"])(c, {})
  return planner.packed(planner.packers(config), batch)


def unpacked(batch):
  return {k: v for k, v in batch.items() if not k.endswith("_pack")}


class Case:
  """A model, and its outputs and gradients as one program."""

  def __init__(self, c):
    self.config, self.net = c, towers.build(c)
    self.params = filled(self.net, configs.example(c))

    def loss(params, batch):
      encoded, aux = self.net.apply(params, batch)
      total = sum(v for k, v in aux.items() if k.startswith("losses/"))
      shown = {}
      for m, e in encoded.items():
        tokens = jnp.where(e.mask[..., None], e.tokens, 0.0)
        shown[m] = e.pooled, tokens
        total += jnp.sum(e.pooled**3) + jnp.sum(tokens**2)
      return total, (shown, aux)

    self.run = jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def sparse():
  return Case(model(("mean",), every=1, others=("audio", "image")))


@pytest.fixture(scope="module")
def dense():
  c = model(("last",), shared=False, depth=2, scan=True, remat="full")
  c.trunk.causal = True
  return Case(c)


def equal(got, want, atol=1e-5):
  def compare(path, a, b):
    where = jax.tree_util.keystr(path)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol, err_msg=where)

  jax.tree_util.tree_map_with_path(compare, got, want)


@pytest.mark.parametrize("kind", ["sparse", "dense"])
def test_values_and_gradients_are_those_of_unpacked_rows(kind, request):
  case = request.getfixturevalue(kind)
  batch = loaded(case.config)
  (total, (shown, aux)), grads = case.run(case.params, batch)
  (want, (plain, reports)), slopes = case.run(case.params, unpacked(batch))
  equal((total / want, shown), (1.0, plain))
  grads, slopes = jax.device_get((grads, slopes))
  scale = max(np.abs(g).max() for g in jax.tree.leaves(slopes))
  equal(*(jax.tree.map(lambda g: g / scale, tree) for tree in (grads, slopes)))
  equal({k: aux[k] for k in reports}, reports)
  name = case.net.modalities[-1].name
  real, cut = batch[f"{name}_mask"].sum(), batch[f"{name}_pack"][:, 1].sum()
  assert cut > 0 and case.net.modalities[-1].pack == packing.Pack(**PACK)
  equal(aux[f"metrics/pack/{name}_cut"], cut / (cut + real))
  equal(aux[f"metrics/pack/{name}_filled"], real / (B * PACK["tokens"]))


@pytest.fixture(scope="module")
def mesh():
  return mesh_lib.make(dict(data=-1))


def test_eight_devices_are_one(sparse, mesh):
  batch = loaded(sparse.config)
  want = sparse.run(sparse.params, batch)
  with jax.set_mesh(mesh):
    got = sparse.run(
      sparse.params, jax.device_put(batch, mesh_lib.batch_sharding(mesh))
    )
  equal(got[0], want[0], atol=1e-4)


def moved(pack):
  def run(x, plan, mask):
    def loss(x):
      packed = packing.layout(pack, plan, mask, "text")
      y = packed.enter(x)
      owners = packed.of_example(x[:, 0, 0])
      return jnp.sum(packed.leave(y**2) ** 2), (y, packed.segments(), owners)

    return jax.value_and_grad(loss, has_aux=True)(x)

  return jax.jit(run)


def test_tokens_move_within_their_devices(mesh):
  pack = packing.Pack(tokens=5, rows=2, group=4)
  mask = np.arange(N) < np.random.default_rng(0).integers(0, N + 1, (B, 1))
  packer = planner.Packer("text", 5, 2, 4, fill=0)
  batch = packer(dict(text=mask.astype(np.int32), text_mask=mask))
  x = np.random.default_rng(1).standard_normal((B, N, 3)).astype(np.float32)
  plan, mask = batch["text_pack"], batch["text_mask"]
  with jax.set_mesh(mesh):
    split = NamedSharding(mesh, PartitionSpec("data"))
    args = jax.device_put((x, plan, mask), split)
    compiled = moved(pack).lower(*args).compile()
    (total, (y, segments, owners)), slopes = compiled(*args)
  kept = np.where(mask[..., None], x, 0)
  np.testing.assert_allclose(total, (kept**4).sum(), rtol=1e-6)
  np.testing.assert_allclose(slopes, 4 * kept**3, rtol=1e-5, atol=1e-6)
  rows, where = np.asarray(y).reshape(-1, 20, 3), np.asarray(segments).reshape(-1, 20)
  first = np.asarray(owners).reshape(-1, 20)
  for i in range(B):
    start, n = plan[i, 0], mask[i].sum()
    np.testing.assert_array_equal(rows[i // 4, start : start + n], x[i, :n])
    np.testing.assert_array_equal(where[i // 4, start : start + n], i % 4)
    np.testing.assert_array_equal(first[i // 4, start : start + n], x[i, 0, 0])
  assert np.isin(where, range(5)).all() and not rows[where == 4].any()
  text = compiled.as_text()  # the sum for `total` is all that devices tell each other
  for word in ("all-gather", "all-to-all", "collective-permute"):
    assert word not in text


def test_every_pooling_and_no_text_reaches_another():
  c = model(("cls", "first", "map", "mean"))
  net = towers.build(c)
  params, batch = filled(net, configs.example(c)), loaded(c)
  run = jax.jit(lambda batch: net.apply(params, batch)[0])
  want, plain = run(batch), run(unpacked(batch))
  changed = {m: batch[m].copy() for m in c.modalities}
  for ids in changed.values():
    ids[5] = 9 - ids[5]
  got = run(batch | changed)
  others = np.arange(B) != 5
  for m in c.modalities:
    equal(want[m].pooled, plain[m].pooled)
    np.testing.assert_array_equal(want[m].mask, plain[m].mask)
    equal(want[m].tokens, jnp.where(plain[m].mask[..., None], plain[m].tokens, 0.0))
    for a, b in ((got[m].pooled, want[m].pooled), (got[m].tokens, want[m].tokens)):
      np.testing.assert_array_equal(a[others], b[others])
      assert (a[5] != b[5]).any()


def test_stochastic_depth_drops_whole_examples():
  c = model(("mean",), depth=2)
  c.trunk.drop_path = 0.5
  net = towers.build(c)
  params = filled(net, configs.example(c))
  batch = loaded(c)
  keys = {"dropout": jax.random.key(3)}

  @jax.jit
  def run(batch):
    encoded, _ = net.apply(params, batch, train=True, rngs=keys)
    return encoded["text_mean"].pooled

  equal(run(batch), run(unpacked(batch)))
  kept = stochastic.drop_path(jnp.ones(B), 0.5, jax.random.key(0))
  assert set(np.unique(kept)) == {0.0, 2.0}


def test_without_a_plan_the_program_is_the_same():
  c = model(("mean",), every=1)
  batch = unpacked(loaded(c))

  def text():
    net = towers.build(c)
    params = filled(net, configs.example(c))
    return jax.jit(net.apply).lower(params, batch).as_text()

  packing_is_set = text()
  for m in c.modalities.values():
    m.pack.tokens = 0
  assert text() == packing_is_set


def test_chunks_of_a_batch_keep_groups_together():
  x = jnp.arange(24)
  chunks = step_lib._split(x, 3, 4)
  assert chunks.shape == (3, 8)
  np.testing.assert_array_equal(chunks[1], [*range(4, 8), *range(16, 20)])
  np.testing.assert_array_equal(step_lib._join(chunks, 4), x)
  c = model(("mean",))
  net = towers.build(c)
  params, batch = filled(net, configs.example(c)), loaded(c)
  key = jax.random.key(0)
  run = step_lib.make_encoder(net, train=False, microbatches=2)
  encoded, aux = jax.jit(run)(params["params"], batch, key)
  whole, reports = jax.jit(net.apply)(params, batch)
  equal(encoded["text_mean"].pooled, whole["text_mean"].pooled)
  slots = "metrics/pack/text_mean_filled"
  equal(aux[slots], reports[slots])


def test_views_must_not_change_what_was_planned():
  batch = loaded(model(("mean",)))
  name = "text_mean"
  parts.check_pack(batch, {**batch, name: batch[name] + 0}, name)
  seen = {**batch, f"{name}_mask": ~batch[f"{name}_mask"]}
  with pytest.raises(ValueError, match=rf"modalities\.{name}\.pack\.tokens = 0"):
    parts.check_pack(batch, seen, name)
  assert {f"{name}_pack", "valid"} < set(parts._only(batch, (name,)))
  assert f"{name}_pack" not in parts._without(batch, {name})


@pytest.mark.parametrize(
  "changes, words",
  [
    (
      dict(pack=dict(tokens=2, rows=3, group=6)),
      r"3 \* 2 = 6 .* of 8 .*to 4",
    ),
    (dict(pack=dict(tokens=8)), "expected 1 to 7"),
    (dict(pack=dict(tokens=2), pool="cls", registers=2), "expected 4 to 10"),
    (dict(pack=dict(tokens=5, rows=3)), r"group = 32 .* whole bins of .*rows = 3"),
    (dict(pack=dict(tokens=5, row=3)), "row"),
    (dict(pack=dict(tokens=5), pad=-1), r"pad = -1 .* all ids are real"),
    (dict(pack=dict(tokens=2), stem="patches", drop_patches=0.5), "drop_patches"),
  ],
)
def test_impossible_packs_are_named(changes, words):
  c = small(every=0, modalities=("text",))
  if changes.get("stem"):
    c.modalities.text.update(dict(size=(8, 4, 1), patch=(2, 4)))
  c.modalities.text.update(dict(length=N))
  with pytest.raises(ValueError, match=words) as error:
    new = c.modalities.text.to_dict() | changes
    c.modalities.text = base.modality()
    c.modalities.text.update(new)
    if "row" in changes["pack"]:
      c.modalities.text.pack.row = 3
    configs.modalities(c)
  assert "config.model.modalities.text" in str(error.value)


def test_routers_that_mix_and_batches_that_do_not_fit_are_refused(mesh):
  c = model(("mean",), every=1)
  c.moe.update(dict(router="soft", group=1))
  with pytest.raises(ValueError, match=r"text_mean\.pack .*'token_choice'"):
    towers.build(c)
  pack = packing.Pack(**PACK)
  with pytest.raises(ValueError, match=r"text_pack has shape .*group = 2"):
    packing.layout(pack, jnp.zeros((3, 2), jnp.int32), jnp.ones((3, N), bool), "text")
  with pytest.raises(ValueError, match="text_mask"):
    packing.layout(pack, jnp.zeros((2, 2), jnp.int32), None, "text")
  key = "config.model.modalities.text.pack.group"
  with pytest.raises(ValueError, match=rf"6 examples, .* groups of 4\. Set {key}"):
    mesh_lib.check_batch(48, mesh, 1, 4, key)


def test_flops_are_of_what_is_packed():
  c = small(every=2, modalities=("text",))
  c.modalities.text.update(dict(length=N))
  whole = count.flops_per_example(c)["text"]
  c.modalities.text.pack.update(dict(tokens=4, rows=3, group=6))
  d, w, mlp, experts = 2, 16, 16, 4
  tokens = 4 * (8 * w**2 + 4 * w * mlp) * d + 4 * 2 * w * experts
  attention = d * 4 * 4 * 12 * w
  packed = count.flops_per_example(c)["text"]
  assert packed == tokens + attention + 2 * w * 8
  assert count.flops_per_example(c, train=False)["text"] == whole > packed
