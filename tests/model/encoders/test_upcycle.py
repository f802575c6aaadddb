"""Upcycled towers equal the dense ones; resized ones equal what they were."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.encoders import config as configs
from model.encoders import stacking, towers, upcycle
from model.layers.mlp import Mlp
from model.moe.layer import MoeMlp
from tests.model.encoders.models import batch_of, small
from tests.model.layers.filled import filled

KEY = jax.random.key(3)
TEXT = ("text",)


def sparse(names=TEXT, shared=True, every=2, **moe):
  """Returns `config.model` of towers that drop nothing, without routing noise."""
  model = small(modalities=names, shared=shared, every=every)
  model.moe.losses.load = 0.0  # needs noise
  model.moe.update(dict(noise=0.0, capacity=16.0, capacity_eval=16.0) | moe)
  return model


def shapes(model):
  net = towers.build(model)
  init = lambda: net.init(KEY, configs.example(model))["params"]  # noqa: E731
  return jax.eval_shape(init)


@functools.cache
def dense():
  model = small(modalities=TEXT, every=0)
  net = towers.build(model)
  return net, filled(net, configs.example(model))["params"]


def pooled(model, params, train=False):
  net = towers.build(model)
  apply = jax.jit(lambda p: net.apply({"params": p}, batch_of(TEXT), train=train)[0])
  return np.asarray(apply(params)["text"].pooled)


def sharpened(model):
  """Returns parameters of sparse towers whose routers are sure and disagree."""
  params = filled(towers.build(model), configs.example(model), seed=5)["params"]
  layer = params["trunk"]["block_01"]["moe"]
  layer["router"]["kernel"] = 10 * layer["router"]["kernel"]
  return params


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_makes_the_parameters_that_the_sparse_model_has(shared, scan):
  names = ("image", "text")
  model = sparse(names, shared)
  model.scan = scan
  before = shapes(small(shared, 0, names, scan=not scan))
  got = jax.eval_shape(lambda params: upcycle.upcycle(params, model, KEY, 0.1), before)
  assert got == shapes(model)


@pytest.mark.parametrize(("experts", "k"), [(4, 1), (4, 3)])
def test_outputs_equal_the_dense_models(experts, k):
  net, params = dense()
  batch = batch_of(TEXT)
  want = jax.jit(lambda p: net.apply({"params": p}, batch)[0]["text"].pooled)(params)
  model = sparse(experts=experts, k=k)
  new = upcycle.upcycle(params, model, KEY)
  assert np.std(want) > 0.01
  for train in (False, True):
    np.testing.assert_allclose(pooled(model, new, train), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("k", [1, 2])
def test_noise_multiplies_the_outputs_by_what_is_documented(k):
  _, params = dense()
  new = upcycle.upcycle(params, sparse(k=k), KEY, 0.3)["trunk"]["block_01"]["moe"]
  assert 0.2 < np.std(new["router"]["kernel"]) < 0.4
  x = jax.random.normal(KEY, (2, 3, 16))
  mlp = Mlp(16).apply({"params": params["trunk"]["block_01"]["mlp"]}, x)[0]
  layer = MoeMlp(configs.sparse(sparse(k=k)), 16)
  y, _ = layer.apply({"params": new}, x, jnp.ones((2, 3), bool), (("text", 3),))
  factor = np.asarray(y / mlp)
  logits = np.asarray(x @ new["router"]["kernel"])
  np.testing.assert_allclose(factor, factor[..., :1] + 0 * factor, rtol=1e-3)
  assert np.all(factor > 1 - 1e-3)
  assert np.all(factor[..., 0] < np.exp(np.ptp(logits, axis=-1)))
  assert np.max(factor) > 1.2  # not the trivial case


def test_gradients_reach_the_router_and_every_chosen_expert():
  _, params = dense()
  model = sparse(k=2)
  net = towers.build(model)
  new = upcycle.upcycle(params, model, KEY, 0.2)

  def loss(params):
    (out, _), kept = net.apply(
      {"params": params}, batch_of(TEXT), mutable=["intermediates"]
    )
    return jnp.sum(jnp.square(out["text"].pooled)), kept["intermediates"]

  grads, kept = jax.jit(jax.grad(loss, has_aux=True))(new)
  (index,) = kept["trunk"]["block_01"]["moe"]["expert_index"]
  chosen = sorted({int(i) for i in np.unique(index)} - {-1})
  assert len(chosen) > 2
  layer = grads["trunk"]["block_01"]["moe"]
  assert np.all(np.any(np.asarray(layer["router"]["kernel"]) != 0, axis=0))
  for part in jax.tree.leaves(layer["experts"]):
    some = np.any(np.asarray(part).reshape(4, -1) != 0, axis=1)
    assert sorted(np.flatnonzero(some)) == chosen


@pytest.mark.parametrize("k", [(1, 1), (1, 2), (2, 4)])
def test_twice_the_experts_keep_the_outputs(k):
  before = sparse(k=k[0])
  params = sharpened(before)
  after = sparse(experts=8, k=k[1])
  new = upcycle.resize_experts(params, 8, KEY, k=k)
  assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, shapes(after))
  want = pooled(before, params)
  np.testing.assert_allclose(pooled(after, new), want, rtol=1e-5, atol=1e-5)


def test_fewer_experts_undo_more_and_keep_what_is_asked():
  params = sharpened(sparse())
  eight = upcycle.resize_experts(params, 8, KEY)
  four = upcycle.resize_experts(eight, 4, KEY, kept_mass=0.5)
  jax.tree.map(np.testing.assert_array_equal, four, params)
  two = upcycle.resize_experts(params, 2, KEY, keep=(3, 1))
  old, new = (p["trunk"]["block_01"]["moe"] for p in (params, two))
  at = np.asarray([3, 1])
  np.testing.assert_array_equal(new["router"]["kernel"], old["router"]["kernel"][:, at])
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b[at]), new["experts"], old["experts"]
  )


def test_resizes_scanned_layers_as_unrolled_ones():
  params = sharpened(sparse())
  stacked = upcycle.resize_experts(stacking.stack_layers(params), 8, KEY)
  jax.tree.map(
    np.testing.assert_array_equal,
    stacking.unstack_layers(stacked),
    upcycle.resize_experts(params, 8, KEY),
  )


def test_noise_tells_copies_apart():
  new = upcycle.resize_experts(sharpened(sparse()), 8, KEY, 0.1)
  kernel = np.asarray(new["trunk"]["block_01"]["moe"]["router"]["kernel"])
  assert 0.05 < np.std(kernel[:, ::2] - kernel[:, 1::2]) < 0.3


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (lambda m: m.trunk.update(depth=3), "has 2 blocks, expected .*depth = 3"),
    (lambda m: m.trunk.update(mlp=8), "hidden width 16, expected .*mlp = 8"),
    (lambda m: m.moe.update(every=0), "describe a dense model"),
    (lambda m: m.moe.update(router="soft", group=1), "'soft' has no place for copies"),
    (lambda m: m.update(shared_trunk=False), "Set config.model.shared_trunk = True"),
  ],
)
def test_upcycle_says_what_does_not_fit(change, message):
  before = shapes(small(modalities=TEXT, every=0))
  model = sparse()
  change(model)
  with pytest.raises(ValueError, match=message):
    upcycle.upcycle(before, model, KEY)


def test_own_trunks_do_not_become_a_shared_one():
  names = ("image", "text")
  own = shapes(small(False, 0, names))
  with pytest.raises(ValueError, match=r"trunk_image, trunk_text, .*cannot become a"):
    upcycle.upcycle(own, sparse(names), KEY)
  del own["trunk_image"]
  with pytest.raises(ValueError, match="nothing to copy for trunk_image"):
    upcycle.upcycle(own, sparse(names, shared=False), KEY)


def test_upcycling_twice_or_with_negative_noise_is_refused():
  with pytest.raises(ValueError, match="sparse already in block_01"):
    upcycle.upcycle(shapes(sparse()), sparse(), KEY)
  with pytest.raises(ValueError, match="noise = -1"):
    upcycle.upcycle(shapes(small(modalities=TEXT, every=0)), sparse(), KEY, -1)


@pytest.mark.parametrize(
  ("experts", "options", "message"),
  [
    (6, {}, "6 % 4 = 2.*experts to 4 or 8"),
    (4, {}, "4 experts, and the checkpoint has 4"),
    (0, {}, "0 experts, and the checkpoint has 4"),
    (8, dict(k=(2, 2)), "k = 2 after 2, with 8 / 4 = 2 copies.*= 2 * 2 = 4."),
    (8, dict(k=(1, 3)), "k = 2 * 1 = 2 or 1 to 2."),
    (8, dict(keep=(0, 1)), "are for fewer experts"),
    (2, dict(keep=(0, 4)), "expected 2 different experts"),
    (2, dict(keep=(1, 1)), "expected 2 different experts"),
    (2, dict(kept_mass=0.0), "kept_mass = 0.0"),
    (2, dict(k=(1, 2)), "expected the same k, of at most 2"),
  ],
)
def test_resize_says_what_cannot_be(experts, options, message):
  params = shapes(sparse())
  message = ".*".join(re.escape(part) for part in message.split(".*"))
  with pytest.raises(ValueError, match=message):
    upcycle.resize_experts(params, experts, KEY, **options)


def test_resize_wants_sparse_layers_with_a_kernel_for_each_expert():
  with pytest.raises(ValueError, match="no sparse layer"):
    upcycle.resize_experts(shapes(small(modalities=TEXT, every=0)), 8, KEY)
  soft = sparse(router="soft", group=1)
  with pytest.raises(ValueError, match=r"a router holds .*'scale'"):
    upcycle.resize_experts(shapes(soft), 8, KEY)
