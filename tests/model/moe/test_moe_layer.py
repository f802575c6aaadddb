import dataclasses
import functools

from flax import errors
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from model.moe import aux as losses
from model.moe import router
from model.moe.config import MoeConfig
from model.moe.layer import MoeMlp

B, W, M, E = 4, 8, 12, 4
MODALITY = (("image", 5), ("text", 3))
N = 8
LOSSES = (
  ("importance", 1.0),
  ("load", 0.5),
  ("gshard", 0.5),
  ("z", 1.0),
  ("local_entropy_text", 1.0),
  ("global_entropy_text", 1.0),
  ("global_entropy_image", 2.0),
)
CONFIG = MoeConfig(
  experts=E,
  k=2,
  group=2,
  capacity=0.8,
  capacity_eval=0.8,
  losses=LOSSES,
  min_experts=(("image", 3.99), ("text", 3.99)),
)
KEY = jax.random.key(7)
QUICK = {"xla_backend_optimization_level": 0}  # halves the time that compiling takes


def _layer(**changes):
  return MoeMlp(dataclasses.replace(CONFIG, **changes), mlp=M)


@pytest.fixture(scope="module")
def data():
  x = np.random.default_rng(0).standard_normal((B, N, W)).astype(np.float32)
  mask = np.ones((B, N), bool)
  mask[0, -1] = mask[2, 0] = False
  return jnp.asarray(x), jnp.asarray(mask)


def _init(layer, x, mask, modality=MODALITY):
  return jax.jit(lambda key: layer.init(key, x, mask, modality)["params"])(KEY)


@pytest.fixture(scope="module")
def fresh(data):
  return _init(_layer(), *data)


@pytest.fixture(scope="module")
def params(fresh):
  # Biases that are not nearly 0, so that an empty slot would show.
  shift = {"up": {"bias": 0.1, "kernel": 0.0}, "down": {"bias": 0.1, "kernel": 0.0}}
  return fresh | {"experts": jax.tree.map(jnp.add, fresh["experts"], shift)}


@functools.cache  # compiled once for all tests
def _program(train, modality, changes):
  layer = _layer(**dict(changes))

  def run(params, x, mask):
    rngs = {"router": KEY} if train else {}
    return layer.apply({"params": params}, x, mask, modality, train=train, rngs=rngs)

  return run, jax.jit(run, compiler_options=QUICK)


def _run(train=False, modality=MODALITY, **changes):
  return _program(train, modality, tuple(sorted(changes.items())))[0]


def _apply(params, x, mask, train=False, modality=MODALITY, **changes):
  jitted = _program(train, modality, tuple(sorted(changes.items())))[1]
  return jitted(params, x, mask)


@functools.cache
def _gradients(dispatch):
  """Of sum(sin(y) * weight) + losses in (params, x); also (y, aux)."""
  weight = np.random.default_rng(1).standard_normal((B, N, W)).astype(np.float32)

  def loss(params, x, mask):
    y, aux = _run(train=True, dispatch=dispatch)(params, x, mask)
    total = sum(v for name, v in aux.items() if name.startswith("losses/"))
    return jnp.sum(jnp.sin(y) * weight) + total, (y, aux)

  gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)
  return jax.jit(gradients, compiler_options=QUICK)


def test_parameters(data, fresh):
  tree = fresh
  shapes = {"/".join(k.key for k in p): v.shape for p, v in _leaves(tree)}
  assert shapes == {
    "router/kernel": (W, E),
    "experts/up/kernel": (E, W, M),
    "experts/up/bias": (E, M),
    "experts/down/kernel": (E, M, W),
    "experts/down/bias": (E, W),
  }
  assert all(v.dtype == jnp.float32 for _, v in _leaves(tree))
  kernel = np.asarray(tree["experts"]["up"]["kernel"])
  bound = np.sqrt(6 / (W + M))  # Glorot per expert, not over the stack of them
  assert 0.8 * bound < np.abs(kernel).max() <= bound
  assert not np.allclose(kernel[0], kernel[1])
  twins = _init(_layer(identical_init=True), *data)
  for _, leaf in _leaves(twins["experts"]):
    np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
  # Any number of examples will do to initialise.
  one = jax.eval_shape(lambda: _layer().init(KEY, *(a[:1] for a in data), MODALITY))
  assert jax.tree.map(jnp.shape, one["params"]) == jax.tree.map(jnp.shape, tree)


def _leaves(tree):
  return jax.tree_util.tree_leaves_with_path(tree)


def _gates(params, x):
  return special.softmax(np.asarray(x) @ np.asarray(params["router"]["kernel"]), -1)


@pytest.mark.parametrize("k", [1, 2])
def test_output_is_the_gated_sum_of_the_experts_that_serve(params, data, k):
  x, mask = data
  y, aux = _apply(params, x, mask, k=k)
  gates = _gates(params, x)
  p = jax.tree.map(np.asarray, params["experts"])
  h = np.einsum("bnw,ewm->bnem", x, p["up"]["kernel"]) + p["up"]["bias"]
  h = np.asarray(nn.gelu(jnp.asarray(h)))
  every = np.einsum("bnem,emw->bnew", h, p["down"]["kernel"]) + p["down"]["bias"]
  slots = router.capacity(2 * N, k, 0.8, E)
  expected, served = np.zeros((B, N, W)), np.zeros(E)
  for group in range(2):
    rows = [(b, n) for b in (2 * group, 2 * group + 1) for n in range(N) if mask[b, n]]
    rows.sort(key=lambda r: -np.max(gates[r]))
    used = np.zeros(E, int)
    for choice in range(k):
      for r in rows:
        e = int(np.argsort(-gates[r])[choice])
        if used[e] < slots:
          used[e] += 1
          expected[r] += gates[r][e] * every[r][e]
          served[e] += r[1] >= 5
  np.testing.assert_allclose(y, expected, atol=1e-5)
  dropped = np.all(expected == 0, -1)
  assert np.any(dropped & np.asarray(mask)) == (k == 1)
  np.testing.assert_array_equal(np.asarray(y)[dropped], 0.0)
  texts = int(jnp.sum(mask[:, 5:]))
  np.testing.assert_allclose(aux["load/text"], served / texts, rtol=1e-6)
  assert float(aux["served/text"]) == pytest.approx(served.sum() / texts / k)


def test_einsum_equals_gather(params, data):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
    _gradients("gather")(params, *data),
    _gradients("einsum")(params, *data),
  )


@pytest.mark.parametrize("dispatch", ["gather", "einsum"])
def test_what_padding_holds_changes_nothing(params, data, dispatch):
  x, mask = data
  clean = _gradients(dispatch)(params, x, mask)
  dirty = _gradients(dispatch)(params, jnp.where(mask[..., None], x, jnp.nan), mask)
  jax.tree.map(np.testing.assert_array_equal, clean, dirty)
  (_, (y, _)), (_, to_x) = clean
  np.testing.assert_array_equal(np.asarray(y)[~np.asarray(mask)], 0.0)
  np.testing.assert_array_equal(np.asarray(to_x)[~np.asarray(mask)], 0.0)


@pytest.mark.parametrize("statistics", ["global", "group"])
def test_rows_that_are_not_valid_do_not_count(params, data, statistics):
  x, mask = data
  y, aux = _apply(params, x, mask, statistics=statistics)
  more = jnp.concatenate([x, 9.0 + x[:2]])
  padded = jnp.concatenate([mask, jnp.zeros((2, N), bool)])
  y_padded, aux_padded = _apply(params, more, padded, statistics=statistics)
  np.testing.assert_array_equal(y_padded[:B], y)
  np.testing.assert_array_equal(y_padded[B:], 0.0)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), aux, aux_padded
  )


def test_every_enabled_loss_reaches_the_router_and_is_weighted(params, data):
  def terms(params):
    aux = _run(train=True)(params, *data)[1]
    aux = {k: v for k, v in aux.items() if k.startswith("losses/")}
    return aux, aux

  jacobian = jax.jit(jax.jacrev(terms, has_aux=True), compiler_options=QUICK)
  gradients, aux = jacobian(params)
  assert set(aux) == {f"losses/moe_{name}" for name, _ in LOSSES}
  for name, value in aux.items():
    assert float(value) > 0, name
    assert np.abs(gradients[name]["router"]["kernel"]).max() > 1e-6, name
    for leaf in jax.tree.leaves(gradients[name]["experts"]):
      np.testing.assert_array_equal(leaf, 0.0)
  images = np.array(data[1])
  images[:, 5:] = False
  gates = jnp.asarray(_gates(params, data[0]))
  expected = 0.04 * 2.0 / len(LOSSES) * losses.global_entropy(gates, images, 3.99)
  actual = aux["losses/moe_global_entropy_image"]
  np.testing.assert_allclose(actual, expected, rtol=1e-4)


def test_disabled_losses_are_not_computed(params, data, monkeypatch):
  def fail(*args, **kwargs):
    raise AssertionError("computed")

  for name in ("importance", "load", "local_entropy", "global_entropy"):
    monkeypatch.setattr(losses, name, fail)
  _, aux = jax.eval_shape(_run(losses=(("z", 1.0),)), params, *data)
  assert [k for k in aux if k.startswith("losses/")] == ["losses/moe_z"]


def test_evaluation_is_deterministic_and_training_is_noisy(params, data):
  y, aux = _apply(params, *data)
  again, _ = _apply(params, *data)
  np.testing.assert_array_equal(y, again)
  noisy, noisy_aux = _apply(params, *data, train=True)
  assert not np.allclose(y, noisy)
  # The noise decides who goes where; the clean gates are what the losses see.
  for name in ("importance", "z", "local_entropy_text", "global_entropy_text"):
    key = f"losses/moe_{name}"
    np.testing.assert_allclose(aux[key], noisy_aux[key], rtol=1e-6)
  quiet, _ = _apply(params, *data, train=True, noise=0.0, losses=())
  np.testing.assert_allclose(quiet, y, atol=1e-6)
  with pytest.raises(errors.InvalidRngError, match="router"):
    _layer().apply({"params": params}, *data, MODALITY, train=True)


def test_training_and_evaluation_have_their_own_capacity(params, data):
  def served(**changes):
    _, aux = _apply(params, *data, **changes)
    return float(aux["served/image"])

  assert served(capacity_eval=4.0) == 1.0
  assert served(capacity_eval=4.0, capacity=0.1, train=True) < 0.7


def test_an_absent_modality_emits_nothing(params, data):
  x, mask = data
  run = _run(modality=(("text", 3),))
  y, aux = jax.eval_shape(run, params, x[:, 5:], mask[:, 5:])
  assert y.shape == (B, 3, W)
  assert not [name for name in aux if "image" in name]
  assert "losses/moe_global_entropy_text" in aux and "served/text" in aux


def test_a_modality_without_real_tokens_is_finite(params, data):
  x, mask = data
  mask = mask.at[:, 5:].set(False)
  (_, (_, aux)), gradients = _gradients("gather")(params, x, mask)
  assert all(np.all(np.isfinite(v)) for v in jax.tree.leaves((aux, gradients)))
  for name in ("losses/moe_local_entropy_text", "losses/moe_global_entropy_text"):
    assert float(aux[name]) == 0
  assert float(aux["served/text"]) == 0


def test_text_on_one_expert_is_served_to_about_53_percent():
  # 49 + 16 tokens, E = 8, C = 1.05: 276 slots for 512 tokens; images on the others.
  n, experts = 65, 8
  x = np.zeros((32, n, experts), np.float32)
  x[:, :49] = 5 * np.eye(8)[1 + np.arange(32 * 49).reshape(32, 49) % 7]
  x[:, 49:, 0] = 5
  config = MoeConfig(experts=experts, group=32, noise=0.0)
  layer = MoeMlp(config, mlp=4)
  mask, modality = jnp.ones((32, n), bool), (("image", 49), ("text", 16))
  params = _init(layer, jnp.asarray(x), mask, modality)
  params["router"]["kernel"] = jnp.eye(experts)

  def run(p, x):
    return layer.apply({"params": p}, x, mask, modality, train=True)

  _, aux = jax.jit(run, compiler_options=QUICK)(params, jnp.asarray(x))
  assert float(aux["served/text"]) == pytest.approx(0.53, abs=0.012)
  assert float(aux["served/image"]) == pytest.approx(1.0)
  np.testing.assert_allclose(aux["load/text"], [276 / 512, *[0] * 7], rtol=1e-6)
  np.testing.assert_allclose(aux["load/image"], [0, *[1 / 7] * 7], rtol=1e-6)
  assert float(aux["effective_experts/text"]) == pytest.approx(1.0, abs=0.5)
  assert float(aux["effective_experts/image"]) == pytest.approx(7.2, abs=0.3)
  assert float(aux["router_logit_scale"]) == 5.0


def test_bfloat16_experts_keep_a_float32_router(params, data):
  x, mask = data
  layer = MoeMlp(CONFIG, mlp=M, dtype=jnp.bfloat16)
  run = jax.jit(lambda x: layer.apply({"params": params}, x, mask, MODALITY))
  y, aux = run(x.astype(jnp.bfloat16))
  assert y.dtype == jnp.bfloat16
  assert all(v.dtype == jnp.float32 for v in aux.values())
  reference, _ = _apply(params, x.astype(jnp.bfloat16).astype(jnp.float32), mask)
  np.testing.assert_allclose(y.astype(jnp.float32), reference, atol=0.03)


def test_chosen_experts_can_be_asked_for(params, data):
  x, mask = data
  apply = functools.partial(_layer().apply, mutable=["intermediates"])
  _, kept = jax.jit(lambda p: apply({"params": p}, x, mask, MODALITY))(params)
  index, served = (kept["intermediates"][f"expert_{w}"][0] for w in ("index", "served"))
  best = np.argsort(-_gates(params, x), axis=-1)[..., :2]
  expected = np.where(mask[..., None], best, -1)
  np.testing.assert_array_equal(index, expected)
  gate = kept["intermediates"]["expert_gate"][0]
  wanted = np.take_along_axis(np.asarray(_gates(params, x)), best, axis=-1)
  np.testing.assert_allclose(
    np.asarray(gate)[np.asarray(mask)], wanted[np.asarray(mask)], rtol=1e-5
  )
  assert served.shape == (B, N, 2) and not np.any(np.asarray(served)[~np.asarray(mask)])


def test_bad_shapes_are_named(params, data):
  x, mask = data
  with pytest.raises(ValueError, match=r"mask has shape \(4, 7\), expected \(4, 8\)"):
    _apply(params, x, mask[:, :7])
  with pytest.raises(ValueError, match=r"x has 8 tokens .* image 5 \+ text 4 = 9"):
    _apply(params, x, mask, modality=(("image", 5), ("text", 4)))
  with pytest.raises(ValueError, match=r"3 % 2 = 1.*config\.batch_size"):
    _apply(params, x[:3], mask[:3])


def test_what_is_evaluated_alone_has_the_slots_of_all(params, data):
  x, _ = data
  text = (("text", 3),)
  same = jnp.broadcast_to(x[:1, 5:6], (B, 3, W))  # all tokens choose the same expert
  real = jnp.ones((B, 3), bool)

  def served(example, train=False):
    layer = _layer(capacity=2.0, capacity_eval=2.0, k=1).clone(example=example)
    rngs = {"router": KEY} if train else {}
    run = jax.jit(lambda p: layer.apply(p, same, real, text, train=train, rngs=rngs))
    return float(run({"params": params})[1]["served/text"])

  # Groups of 2 examples: 4 slots for 6 tokens; beside 5 of an image 8, for 16.
  assert served(N) == 1.0
  assert served(0) == pytest.approx(4 / 6) and served(N, train=True) < 1.0
