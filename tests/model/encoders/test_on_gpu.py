"""Towers as GPUs want them are the plain ones; cuDNN's attention has a stand-in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from model.encoders import config as configs
from model.encoders import towers
from model.layers import constrain, packing
from tests.model.encoders.models import small
from tests.model.layers import kernels
from tests.model.layers.cudnn import stand_in
from tests.model.layers.filled import filled

N, B = 7, 4
MASK = np.array([[1] * N, [1, 0, 1, 1, 0, 0, 1], [0] * N, [0, 1, 0, 0, 0, 0, 0]], bool)


def model(shared):
  """An image of 4 patches and "cls", and a text with padding; experts if shared."""
  c = small(shared, every=1 if shared else 0, modalities=("image", "text"))
  c.trunk.depth = 1 if shared else 2
  c.modalities.image.pool = "cls"
  c.modalities.text.update(dict(length=N, pool="last"))
  if shared:
    # Slots that are empty must not change how many tokens an expert may take.
    c.moe.update(dict(capacity=9.0, capacity_eval=9.0, noise=0.0))
    c.moe.losses.load = 0.0
  else:
    c.modalities.text.trunk.causal = True
    c.trunk.drop_path = 0.5
  return c


def batch_of():
  rng = np.random.default_rng(0)
  return {
    "image": jnp.asarray(rng.standard_normal((B, 8, 8, 3)), jnp.float32),
    "text": jnp.asarray(rng.integers(1, 9, (B, N)), jnp.int32),
    "text_mask": jnp.asarray(MASK),
  }


def net_of(c, attention):
  c.trunk.attention = attention
  return towers.build(c)


def pooled(net, params, batch, train):
  encoded, aux = net.apply(params, batch, train, rngs={"dropout": jax.random.key(3)})
  return {m: e.pooled for m, e in encoded.items()}, aux


def check_against_plain(c, attention, remat="activations"):
  """Checks a training step's values and gradients; returns the loss and what else."""
  batch = batch_of()
  params = filled(net_of(c, "xla"), configs.example(c))

  def run(attention, remat):
    net = net_of(c, attention).clone(remat=remat)

    def loss(params):
      z, aux = pooled(net, params, batch, train=True)
      total = sum(v for k, v in aux.items() if k.startswith("losses/"))
      return total + sum(jnp.sum(jnp.sin(3 * y)) for y in z.values()), (z, aux)

    (total, shown), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    scale = max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads))
    return total, shown, jax.tree.map(lambda g: g / scale, grads)

  def compare(path, a, b):
    assert np.isfinite(a).all()
    where = jax.tree_util.keystr(path)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=where)

  want = run("xla", "none")
  jax.tree_util.tree_map_with_path(compare, run(attention, remat), want)
  return want


@pytest.mark.parametrize("shared", [False, True])
def test_training_is_that_of_the_plain_towers(monkeypatch, shared):
  calls = stand_in(monkeypatch)
  want = check_against_plain(model(shared), "cudnn")
  assert ("losses/moe_importance" in want[1][1]) == shared
  # 4 patches and "cls", and 7 tokens of text.
  found = {(c.queries, c.causal, c.masked, c.limited) for c in calls}
  assert found == {(6, False, False, True), (8, not shared, False, shared)}


@pytest.mark.parametrize("kind", ["own", "shared", "dropped"])
def test_training_with_kernels_is_that_of_the_plain_towers(monkeypatch, kind):
  others, calls = stand_in(monkeypatch), kernels.stand_in(monkeypatch, depth=8)
  c = model(kind == "shared")
  if kind == "own":  # all that kernels do, and a norm before the trunk
    c.trunk.drop_path = 0.0
    c.modalities.image.stem_norm = True
  seen, batch = set(), constrain.batch
  monkeypatch.setattr(constrain, "batch", lambda x: seen.add(x.ndim) or batch(x))
  check_against_plain(c, "triton", "full" if kind == "shared" else "activations")
  assert min(seen) == 3  # no bias is split like examples
  assert not others  # no even number of tokens is asked for
  norms = {"add_norm", "add_norm_backward"}
  assert norms.isdisjoint(calls) == (kind == "dropped")
  assert ("activate_backward" in calls) == (kind != "shared")  # experts have their own
  assert {"attend", "attend_backward"} <= set(calls)


def test_blocks_that_leave_sums_to_the_next_one_cannot_be_scanned():
  c = model(shared=False)
  c.scan = True
  with pytest.raises(ValueError, match=r"scan = False, or .*= 'cudnn'"):
    net_of(c, "triton")


def program(net, params, batch, train):
  return str(jax.make_jaxpr(lambda p: pooled(net, p, batch, train))(params))


def test_layouts_are_for_gpus_and_tokens_move_in_training(monkeypatch):
  calls, c, batch = stand_in(monkeypatch), model(shared=False), batch_of()
  plain = net_of(c, "xla")
  params = filled(plain, configs.example(c))
  evaluated, trained = (program(plain, params, batch, train) for train in (False, True))
  assert "layout_constraint" not in evaluated + trained and not calls
  aligned, alone = [], packing.alone
  monkeypatch.setattr(
    packing, "alone", lambda *args, **kw: aligned.append(args) or alone(*args, **kw)
  )
  net = net_of(c, "cudnn")
  evaluated = program(net, params, batch, train=False)
  assert {call.masked for call in calls} == {False, True}  # the image, the text
  assert not aligned and " pad[" in evaluated  # each attention by itself
  trained = program(net, params, batch, train=True)
  assert [mask is None for mask, _ in aligned] == [True, False]
  assert trained.count(" pad[") == 3  # the image once, before the trunk; two for "cls"
  for text in (evaluated, trained):
    assert text.count("layout_constraint") == 4  # two a modality


def test_an_even_number_of_real_tokens_stays_where_it_is(monkeypatch):
  calls, c, batch = stand_in(monkeypatch), model(shared=False), batch_of()
  c.modalities.image.pool = "mean"
  monkeypatch.setattr(packing, "alone", None)
  net = net_of(c, "cudnn")
  params = filled(net, configs.example(c))
  calls.clear()
  jax.eval_shape(lambda p: pooled(net, p, {"image": batch["image"]}, True), params)
  assert {call[1:] for call in calls} == {(4, False, False, False)}


def test_texts_that_share_rows_keep_them(monkeypatch):
  calls, c, batch = stand_in(monkeypatch), model(shared=False), batch_of()
  c.modalities.text = base.modality(
    stem="tokens", vocab=9, length=N, pool="last", pack=dict(tokens=5, rows=2, group=2)
  )
  del batch["image"]
  batch["text_pack"] = jnp.zeros((B, 2), jnp.int32)
  net = net_of(c, "cudnn")
  params = filled(net, configs.example(c))
  calls.clear()
  jax.eval_shape(lambda p: pooled(net, p, batch, True), params)
  assert {call[1:] for call in calls} == {(10, False, True, False)}
