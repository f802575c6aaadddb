"""Every router through the layer: definitions, padding, leaks, metrics, devices."""

from fractions import Fraction
import functools
import math

from flax import linen as nn
import jax
from jax.experimental import mesh_utils
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
import pytest
from scipy import special

from model import catalogue
from model.moe import dispatch, router
from model.moe.config import ROUTERS, MoeConfig
from model.moe.layer import MoeMlp
from model.moe.routers import expert_choice, soft
from model.types import BATCH_AXES, MESH_AXES

P = PartitionSpec
B, W, M, E = 8, 8, 12, 4
N_IMAGE, N_TEXT = 6, 4
N = N_IMAGE + N_TEXT
MODALITY = (("image", N_IMAGE), ("text", N_TEXT))
SPANS = dict(image=slice(0, N_IMAGE), text=slice(N_IMAGE, N))
KEY = jax.random.key(7)
QUICK = {"xla_backend_optimization_level": 0}
LOSSES = (
  ("importance", 1.0),
  ("z", 1.0),
  ("local_entropy_text", 1.0),
  ("global_entropy_image", 1.0),
)
NAMES = ("token_choice", "expert_choice", "soft")
MIXERS = ("expert_choice", "soft")


def _layer(name, **changes):
  # Rows of B / group groups go to as many devices, so that the mesh of 8 needs group 1.
  options = dict(k=2, group=1, capacity=1.0, capacity_eval=1.0, slots=3, router=name)
  options |= dict(experts=E, losses=LOSSES, min_experts=(("image", 3.99),)) | changes
  return MoeMlp(MoeConfig(**options), mlp=M)


@functools.cache
def _data():
  rng = np.random.default_rng(0)
  x = rng.standard_normal((B, N, W)).astype(np.float32)
  mask = rng.random((B, N)) < 0.8
  mask[0] = True
  mask[1, N_IMAGE:] = False  # an example without text ...
  mask[2] = False  # ... and one without anything: a padded row of an evaluation
  return jnp.asarray(x), jnp.asarray(mask)


@functools.cache
def _params(name):
  x, mask = _data()
  layer = _layer(name)
  params = jax.jit(lambda key: layer.init(key, x, mask, MODALITY)["params"])(KEY)
  rng = np.random.default_rng(1)
  experts = jax.tree.map(
    lambda p: p + rng.standard_normal(p.shape).astype(np.float32) * (p.ndim == 2),
    params["experts"],
  )
  sure = jax.tree.map(lambda p: p * 4, params["router"])  # far from uniform gates
  return {"router": sure, "experts": experts}


def _loss(layer):
  def loss(params, x, mask):
    rngs = {"router": KEY}
    y, aux = layer.apply({"params": params}, x, mask, MODALITY, train=True, rngs=rngs)
    total = sum(v for name, v in aux.items() if name.startswith("losses/"))
    return jnp.sum(jnp.sin(y)) + total, (y, aux)

  return jax.value_and_grad(loss, (0, 1), has_aux=True)


@functools.cache
def _step(name, **changes):
  return jax.jit(_loss(_layer(name, **changes)), compiler_options=QUICK)


@functools.cache
def _apply(name, modality=MODALITY, **changes):
  layer = _layer(name, **changes)
  return jax.jit(
    lambda params, x, mask: layer.apply({"params": params}, x, mask, modality),
    compiler_options=QUICK,
  )


def _experts(params, rows):
  """float64 rows [r, w] -> [e, r, w]: every expert on every row."""
  p = jax.tree.map(np.asarray, params["experts"])
  h = np.einsum("rw,ewm->erm", rows, p["up"]["kernel"]) + p["up"]["bias"][:, None]
  h = np.asarray(nn.gelu(jnp.asarray(h, jnp.float32)))
  return np.einsum("erm,emw->erw", h, p["down"]["kernel"]) + p["down"]["bias"][:, None]


def _groups(group):
  """Yields (rows, span): the examples and tokens of each group that routes alone."""
  for start in range(0, B, group):
    for span in SPANS.values():
      yield slice(start, start + group), span


@pytest.mark.parametrize("group", [1, 2])
def test_expert_choice_is_the_definition(group):
  params, (x, mask) = _params("expert_choice"), map(np.asarray, _data())
  y, aux = _apply("expert_choice", group=group, capacity=0.5)(params, x, mask)
  expected, times = np.zeros((B, N, W)), np.zeros((B, N))
  for rows, span in _groups(group):
    tokens, real = x[rows, span].reshape(-1, W), mask[rows, span].reshape(-1)
    gates = special.softmax(tokens @ np.asarray(params["router"]["kernel"]), axis=-1)
    slots = max(1, math.ceil(np.count_nonzero(real) * 2 * 0.5 / E))
    every = _experts(params, tokens)
    out, count = np.zeros((len(tokens), W)), np.zeros(len(tokens))
    for e in range(E):
      queue = sorted(np.flatnonzero(real), key=lambda i, e=e: -gates[i, e])
      for i in queue[:slots]:
        out[i] += gates[i, e] * every[e, i]
        count[i] += 1
    shape = expected[rows, span].shape
    expected[rows, span], times[rows, span] = (
      out.reshape(shape),
      count.reshape(shape[:2]),
    )
  assert times.max() > 2 and np.any((times == 0) & mask), "the case must be uneven"
  np.testing.assert_allclose(y, expected, atol=2e-5)
  np.testing.assert_array_equal(np.asarray(y)[times == 0], 0.0)
  for name, span in SPANS.items():
    count = mask[:, span].sum()
    served = np.sum((times > 0)[:, span]) / count
    np.testing.assert_allclose(aux[f"served/{name}"], served, rtol=1e-6)
    per_token = np.sum(times[:, span]) / count
    np.testing.assert_allclose(np.sum(aux[f"load/{name}"]), per_token, rtol=1e-6)


def test_soft_is_the_definition():
  params, (x, mask) = _params("soft"), map(np.asarray, _data())
  y, aux = _apply("soft")(params, x, mask)
  kernel = np.asarray(params["router"]["kernel"], np.float64)
  kernel = float(params["router"]["scale"]) * kernel / np.linalg.norm(kernel, axis=0)
  expected, loads = np.zeros((B, N, W)), np.zeros((B, N, E))
  for rows, span in _groups(1):
    real = mask[rows, span][0]
    if not real.any():
      continue
    tokens = x[rows, span][0, real]
    logits = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True) @ kernel
    slots = special.softmax(logits, axis=0).T @ tokens  # [e * c, w]
    every = _experts(params, slots).reshape(E, E, 3, W)
    own = np.concatenate([every[e, e] for e in range(E)])
    combine = special.softmax(logits, axis=1)
    expected[rows, span][0, real] = combine @ own
    loads[rows, span][0, real] = combine.reshape(-1, E, 3).sum(-1)
  np.testing.assert_allclose(y, expected, atol=2e-5)
  for name, span in SPANS.items():
    mean = loads[:, span].sum((0, 1)) / mask[:, span].sum()
    np.testing.assert_allclose(aux[f"load/{name}"], mean, rtol=1e-4)
    effective = np.exp(-np.sum(mean * np.log(mean)))
    np.testing.assert_allclose(aux[f"effective_experts/{name}"], effective, rtol=1e-4)
    assert float(aux[f"served/{name}"]) == pytest.approx(1.0)


@pytest.mark.parametrize("name", NAMES)
def test_einsum_equals_gather(name):
  expected = _step(name)(_params(name), *_data())
  actual = _step(name, dispatch="einsum")(_params(name), *_data())
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
    actual,
    expected,
  )


@pytest.mark.parametrize("name", NAMES)
def test_what_padding_holds_changes_nothing(name):
  params, (x, mask) = _params(name), _data()
  clean = _step(name)(params, x, mask)
  dirty = _step(name)(params, jnp.where(mask[..., None], x, jnp.nan), mask)
  jax.tree.map(np.testing.assert_array_equal, clean, dirty)
  (_, (y, aux)), (to_params, to_x) = clean
  for leaf in jax.tree.leaves((aux, to_params, to_x)):
    assert np.all(np.isfinite(leaf))
  np.testing.assert_array_equal(np.asarray(y)[~np.asarray(mask)], 0.0)
  np.testing.assert_array_equal(np.asarray(to_x)[~np.asarray(mask)], 0.0)


@pytest.mark.parametrize("name", MIXERS)
def test_examples_and_modalities_do_not_meet(name):
  params, (x, mask) = _params(name), _data()
  y, _ = _apply(name)(params, x, mask)
  other_text = x.at[0, N_IMAGE:].set(1 - 3 * x[0, N_IMAGE:])
  changed, _ = _apply(name)(params, other_text, mask)
  np.testing.assert_array_equal(changed[:, :N_IMAGE], y[:, :N_IMAGE])
  np.testing.assert_array_equal(changed[1:], y[1:])
  assert not np.allclose(changed[0, N_IMAGE:], y[0, N_IMAGE:])
  # So that an image alone, as in evaluation, is what it was beside its caption.
  only = _apply(name, (MODALITY[0],))
  alone, _ = only(params, x[:, :N_IMAGE], mask[:, :N_IMAGE])
  np.testing.assert_allclose(alone, y[:, :N_IMAGE], atol=1e-6)


def test_a_larger_group_of_expert_choice_leaks_and_says_so(monkeypatch):
  said = []
  monkeypatch.setattr(expert_choice.logging, "warning", lambda *args: said.append(args))
  expert_choice._warn_once.cache_clear()
  params, (x, mask) = _params("expert_choice"), _data()
  _layer("expert_choice")
  assert not said
  run = _apply("expert_choice", group=4, capacity=0.5)
  y, _ = run(params, x, mask)
  assert "group = 4" in said[0][1] and "3 others" in said[0][1]
  changed, _ = run(params, x.at[3].set(1 - 3 * x[3]), mask)
  assert not np.allclose(changed[0], y[0])
  np.testing.assert_array_equal(changed[4:], y[4:])


def test_expert_choice_does_not_change_in_evaluation():
  params, data = _params("expert_choice"), _data()
  (_, (y, _)), _ = _step("expert_choice", capacity_eval=4.0)(params, *data)
  same, _ = _apply("expert_choice", capacity_eval=4.0)(params, *data)
  np.testing.assert_allclose(same, y, atol=1e-6)


def test_chosen_experts_of_expert_choice_can_be_asked_for():
  params, (x, mask) = _params("expert_choice"), _data()
  apply = functools.partial(_layer("expert_choice").apply, mutable=["intermediates"])
  _, kept = jax.jit(lambda p: apply({"params": p}, x, mask, MODALITY))(params)
  index, served = (kept["intermediates"][f"expert_{w}"][0] for w in ("index", "served"))
  assert index.shape == served.shape == (B, N, E)
  np.testing.assert_array_equal(served, index >= 0)
  assert np.all(np.isin(index, [-1, *range(E)])) and served.any()
  assert not np.any(np.asarray(served)[~np.asarray(mask)])


def _mesh(sizes):
  sizes = tuple(sizes.get(axis, 1) for axis in MESH_AXES)
  grid = mesh_utils.create_device_mesh(sizes, jax.devices())
  return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 4)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize(
  "sizes", [dict(data=2, fsdp=2, expert=2), dict(data=2, expert=2, tensor=2)]
)
def test_eight_devices_equal_one(name, sizes):
  expected = _step(name)(_params(name), *_data())
  mesh = _mesh(sizes)
  split = NamedSharding(mesh, P(BATCH_AXES))
  with jax.set_mesh(mesh):
    params = jax.device_put(_params(name), NamedSharding(mesh, P()))
    step = jax.jit(_loss(_layer(name)), compiler_options=QUICK)
    compiled = step.lower(params, *jax.device_put(_data(), split)).compile()
    actual = compiled(params, *jax.device_put(_data(), split))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
    actual,
    expected,
  )
  # Out and home, forwards and backwards, for either modality.
  assert compiled.as_text().count(" all-to-all(") == 8


def test_routes_of_experts_leave_slots_empty_when_tokens_are_few():
  gates = jnp.asarray(
    special.softmax(np.arange(12.0).reshape(1, 6, 2), -1), jnp.float32
  )
  mask = jnp.asarray([[False, True, False, True, False, False]])
  taken = expert_choice.take(gates, mask, 4)
  assert taken.token.tolist() == [[[1, 3, 6, 6]] * 2]
  y = dispatch.apply(lambda slots: slots + 1.0, jnp.ones((1, 6, 3)), taken)
  np.testing.assert_allclose(y[0, :, 0], 2.0 * mask[0].astype(np.float32), rtol=1e-6)


def test_a_group_of_padding_alone_has_no_weights():
  logits = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 6)), jnp.float32)
  mask = jnp.zeros((2, 5), bool).at[1].set(True)
  mixed = soft.mix(logits, mask, 3)
  np.testing.assert_array_equal(mixed.spread[0], 0.0)
  np.testing.assert_array_equal(mixed.combine[0], 0.0)
  np.testing.assert_allclose(jnp.sum(mixed.spread[1], 0), np.ones((3, 2)), rtol=1e-6)
  np.testing.assert_allclose(jnp.sum(mixed.combine[1], (1, 2)), np.ones(5), rtol=1e-6)


def test_soft_slots_are_an_option():
  shapes = {k: v.shape for k, v in _params("soft")["router"].items()}
  assert shapes == {"kernel": (W, E * 3), "scale": ()}


def test_every_file_of_the_folder_is_a_router():
  assert catalogue.names(ROUTERS) == sorted(NAMES)
  for name in NAMES:
    assert issubclass(catalogue.find(ROUTERS, name, "Router"), router.Gate)


def test_experts_take_no_more_where_a_group_has_more_padding():
  gates = jnp.asarray(special.softmax(np.random.default_rng(1).random((1, 7, 4)), -1))
  share = Fraction("1.05") * 2 / 4
  for padded in (7, 16, 64):
    more = ((0, 0), (0, padded - 7), (0, 0))
    mask = jnp.arange(padded)[None] < 7
    slots = router.capacity(padded, 2, 1.05, 4, multiple=1)
    taken = expert_choice.take(jnp.pad(gates, more), mask, slots, share)
    assert np.sum(np.asarray(taken.token) < padded) == 4 * math.ceil(7 * share)


def test_no_expert_takes_a_token_twice():
  assert expert_choice.Router.active(MoeConfig(k=4, capacity=4.0, experts=4)) == 4
  assert expert_choice.Router.mlps(MoeConfig(k=1, capacity=2.0), 7, 7) == 2.0
