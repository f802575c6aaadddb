"""The train step: microbatches, auxiliary losses, freezing, devices."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.small import batch_of, limoe, one_device, tiny
from training import setup as setup_lib
from training import step as step_lib


def loss_and_grad(setup, state, batch):
  """The gradient, read off a step of plain SGD."""
  tx = optax.sgd(1.0)
  state = state.replace(opt_state=tx.init(state.params), step=state.step)
  step = step_lib.make_train_step(setup.config, setup.towers, setup.objective, tx)
  new, metrics = jax.jit(step)(state, batch)
  return metrics, jax.tree.map(jnp.subtract, state.params, new.params)


@pytest.fixture(scope="module")
def whole():
  """A state, a batch, and the loss and gradient of the batch as one."""
  setup = one_device(tiny())
  with jax.set_mesh(setup.mesh):
    state, batch = setup.init_state(), setup.put(batch_of(setup.config))
    return state, batch, *loss_and_grad(setup, state, batch)


@pytest.mark.parametrize("chunks", [2, 4])
def test_microbatches_equal_the_whole_batch_in_value_and_gradient(whole, chunks):
  state, batch, a, grad_a = whole
  parts = one_device(tiny(microbatches=chunks))
  with jax.set_mesh(parts.mesh):
    b, grad_b = loss_and_grad(parts, state, batch)
  np.testing.assert_allclose(a["loss"], b["loss"], rtol=2e-6)
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=2e-6), grad_a, grad_b
  )


def test_columns_that_a_loss_reads_reach_the_step():
  config = tiny()
  config.objective.options.losses = (("gcl", 1.0, {"query": "who"}),)
  setup = one_device(config)
  column = np.ones(config.batch_size, np.int32)
  keys = ("grade", "who", "text_valid", "index", "who_else")
  batch = batch_of(config)
  kept = setup.put(batch | dict.fromkeys(keys, column))
  assert kept.keys() == {*batch, "grade", "who", "text_valid"}


def test_microbatches_hold_fewer_activations():
  def temp_bytes(chunks):
    config = tiny(batch_size=512, microbatches=chunks)
    config.model.trunk.depth = 2
    setup = one_device(config)
    with jax.set_mesh(setup.mesh):
      batch = setup.put(batch_of(config))
      compiled = setup.train_step().lower(setup.abstract_state(), batch).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  assert temp_bytes(8) < 0.6 * temp_bytes(1)


def test_every_auxiliary_loss_changes_the_total_and_moves_the_router():
  setup = one_device(limoe())
  loss = step_lib.make_loss(setup.config, setup.towers, setup.objective)

  @jax.jit
  def parts(state, batch):
    """The gradient of the total and of each of its parts by the router."""

    def values(router):
      params = jax.tree.map(lambda x: x, state.params)
      params["towers"]["trunk"]["block_01"]["moe"]["router"]["kernel"] = router
      total, (metrics, _) = loss(params, state, batch)
      return {k: v for k, v in metrics.items() if k.startswith("loss")} | {
        "total": total
      }

    router = state.params["towers"]["trunk"]["block_01"]["moe"]["router"]["kernel"]
    # One that has begun to commit: at the start every entropy is near its maximum.
    return values(router * 10), jax.jacrev(values)(router * 10)

  with jax.set_mesh(setup.mesh):
    state, batch = setup.init_state(), setup.put(batch_of(setup.config))
    value, grad = parts(state, batch)
    _, metrics = jax.eval_shape(setup.train_step(), state, batch)
  names = {k for k in value if k.startswith("losses/moe_")}
  assert names == {
    "losses/moe_importance",
    "losses/moe_load",
    "losses/moe_z",
    "losses/moe_local_entropy_text",
    "losses/moe_local_entropy_image",
    "losses/moe_global_entropy_text",
    "losses/moe_global_entropy_image",
  }
  assert names <= set(metrics)  # the step reports, and so adds, each of them
  for name in sorted(names):
    assert abs(float(value[name])) > 1e-7, name
    assert float(jnp.linalg.norm(grad[name])) > 1e-9, name
  summed = {*names, "losses/objective"}
  np.testing.assert_allclose(value["total"], sum(value[k] for k in summed), rtol=1e-6)
  np.testing.assert_allclose(
    grad["total"], sum(grad[k] for k in summed), rtol=1e-4, atol=1e-7
  )


def test_frozen_tower_keeps_its_parameters_and_holds_no_moments():
  config = tiny()
  config.optimizer.frozen = ("towers/.*_image/",)
  setup = one_device(config)
  with jax.set_mesh(setup.mesh):
    state = setup.init_state()
    before = jax.device_get(state.params["towers"])
    batch = setup.put(batch_of(config))
    step = setup.train_step()
    for _ in range(3):  # the first has a learning rate of 0
      state, _ = step(state, batch)
    after = jax.device_get(state.params["towers"])
  frozen = [k for k in before if k.endswith("_image")]
  assert frozen
  for name, tree in before.items():
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), tree, after[name])
    assert any(jax.tree.leaves(moved)) == (name not in frozen), name
  count = sum(x.size for x in jax.tree.leaves(state.params["towers"]))
  trained = count - sum(x.size for k in frozen for x in jax.tree.leaves(before[k]))
  moments = sum(x.size for x in jax.tree.leaves(state.opt_state))
  assert moments < 2 * trained + 10


def test_eight_devices_take_the_same_step_as_one():
  config = tiny()
  one = one_device(config)
  config8 = tiny()
  config8.mesh.update(dict(data=2, fsdp=2, expert=1, tensor=2))
  eight = setup_lib.build(config8)
  losses = {}
  for name, setup in (("one", one), ("eight", eight)):
    with jax.set_mesh(setup.mesh):
      state, step = setup.init_state(), setup.train_step()
      losses[name] = []
      for i in range(3):
        state, metrics = step(state, setup.put(batch_of(config, seed=i)))
        losses[name].append(float(metrics["loss"]))
  np.testing.assert_allclose(losses["one"], losses["eight"], rtol=1e-5)


def test_moving_average_follows_and_is_what_gets_evaluated():
  setup = one_device(tiny(ema=0.9))
  with jax.set_mesh(setup.mesh):
    state, batch = setup.init_state(), setup.put(batch_of(setup.config))
    step = setup.train_step()
    for _ in range(4):
      state, _ = step(state, batch)
  assert state.eval_params is state.ema
  leaf = ("towers", "project_image", "kernel")
  ema, online = state.ema, state.params
  for key in leaf:
    ema, online = ema[key], online[key]
  assert 0 < float(jnp.abs(ema - online).max()) < 0.1


def test_second_step_does_not_recompile():
  setup = one_device(tiny())
  with jax.set_mesh(setup.mesh):
    state, step = setup.init_state(), setup.train_step()
    for i in range(3):
      state, _ = step(state, setup.put(batch_of(setup.config, seed=i)))
  assert step._cache_size() == 1


def test_the_norm_of_the_gradients_keeps_no_squares():
  """One more table of squares would be as large as the gradient of the largest one."""
  config = tiny()
  config.model.modalities.text.vocab = 2**16
  config.optimizer.clip = 0.0
  setup = one_device(config)
  with jax.set_mesh(setup.mesh):
    batch = setup.put(batch_of(config))
    compiled = setup.train_step().lower(setup.abstract_state(), batch).compile()
  table = 4 * 2**16 * config.model.trunk.width
  assert compiled.memory_analysis().temp_size_in_bytes < 1.5 * table


def test_the_compiler_is_told_what_its_platform_wants(monkeypatch):
  assert set(setup_lib.COMPILER) == {"gpu", "tpu"}
  monkeypatch.setitem(setup_lib.COMPILER, "cpu", {"xla_no_such_option": 1})
  setup = one_device(tiny())
  with jax.set_mesh(setup.mesh):
    lowered = setup.train_step().lower(setup.abstract_state(), setup.batch_spec())
    with pytest.raises(Exception, match="xla_no_such_option"):
      lowered.compile()


def test_pieces_are_for_chips_that_exchange_in_the_background():
  config = tiny()
  setup = one_device(config)

  def told(kind, pieces):
    config.model.moe.pieces = pieces
    device = types.SimpleNamespace(platform="tpu", device_kind=kind)
    mesh = types.SimpleNamespace(devices=np.array([device]))
    return dataclasses.replace(setup, mesh=mesh)._compiler_options()

  assert told("TPU v5", 1) == told("TPU v5 lite", 1) == setup_lib.COMPILER["tpu"]
  more = told("TPU v5", 2).items() - setup_lib.COMPILER["tpu"].items()
  assert dict(more) == setup_lib.IN_BACKGROUND
  with pytest.raises(ValueError, match=r"model\.moe\.pieces = 2 on TPU v5 lite"):
    told("TPU v5 lite", 2)


def test_losses_of_several_calls_are_logged_as_they_are_added():
  calls = [{"losses/a": 1.0, "metrics/b": 1.0}, {}, {"losses/a": 2.0, "metrics/b": 4.0}]
  calls[2]["metrics/c"] = 5.0
  together = step_lib._together(calls)
  assert together == {"losses/a": 3.0, "metrics/b": 2.5, "metrics/c": 5.0}
