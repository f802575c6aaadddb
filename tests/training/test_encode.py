"""Which parameters an objective encodes with: online, their average, the first ones."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.types import ObjectiveOutput
from tests.small import batch_of, one_device, tiny
from training import checkpoint
from training import step as step_lib


@dataclasses.dataclass(frozen=True)
class Follow:
  """Draws the online image embeddings to those of other parameters, times its own."""

  using: str
  frozen: ClassVar[bool] = True

  def init(self, key, towers, batch_spec):
    return {"gain": jnp.float32(1.5)}, {}

  def __call__(self, params, state, encode, batch, key, step):
    assert encode.params()["gain"] is params["gain"]
    target = encode(batch, using=self.using)["image"].pooled
    target *= encode.params(self.using)["gain"]
    loss = jnp.mean((params["gain"] * encode(batch)["image"].pooled - target) ** 2)
    return ObjectiveOutput(loss=loss, metrics={"target": target}, state=state)


class Forgetful(Follow):
  frozen: ClassVar[bool] = False


def setup_of(objective, **changes):
  config = tiny(**{"ema": 0.9, "batch_size": 4, **changes})
  config.model.trunk.depth = 1
  return dataclasses.replace(one_device(config), objective=objective)


def steps(setup, state, n):
  step, targets = setup.train_step(), []
  for _ in range(n):
    state, metrics = step(state, setup.put(batch_of(setup.config)))
    targets.append(np.asarray(metrics["target"]))
  return state, targets


@pytest.fixture(scope="module")
def followed():
  """Three steps towards the frozen copy: (setup, first state, last state, targets)."""
  setup = setup_of(Follow("frozen"))
  with jax.set_mesh(setup.mesh):
    first = setup.init_state()
    kept = jax.device_get(first)
    return setup, kept, *steps(setup, first, 3)


def test_the_frozen_copy_stays_while_the_online_parameters_move(followed):
  _, first, last, targets = followed
  jax.tree.map(np.testing.assert_array_equal, last.frozen, first.params)
  moved = jax.tree.map(lambda a, b: bool((a != b).any()), last.params, first.params)
  assert moved["objective"]["gain"] and any(jax.tree.leaves(moved["towers"]))
  np.testing.assert_array_equal(targets[0], targets[2])


def test_the_frozen_copy_is_saved_and_continued(followed, tmp_path):
  setup, _, last, _ = followed
  keeper = checkpoint.Checkpointer(str(tmp_path), setup.config.checkpoint)
  keeper.save(3, last, {})
  with jax.set_mesh(setup.mesh):
    restored, _ = keeper.restore(setup.abstract_state())
    jax.tree.map(np.testing.assert_array_equal, restored, last)
  keeper.close()


def test_frozen_embeddings_do_not_depend_on_microbatches(followed):
  _, first, _, targets = followed
  setup = setup_of(Follow("frozen"), microbatches=2)
  loss = step_lib.make_loss(setup.config, setup.towers, setup.objective)
  with jax.set_mesh(setup.mesh):
    _, (metrics, _) = jax.jit(loss)(first.params, first, batch_of(setup.config))
  np.testing.assert_allclose(metrics["target"], targets[0], rtol=1e-5, atol=1e-6)


def test_runs_without_a_copy_write_none_and_other_starts_renew_it(followed):
  setup, first, _, _ = followed
  bare = dataclasses.replace(setup, objective=Forgetful("ema")).abstract_state()
  # Orbax compares fields: one more would shut out the checkpoints of before.
  assert bare.frozen == {} and "frozen" not in checkpoint._fields(bare)
  params = jax.tree.map(lambda x: x + 1, first.params)
  assert first.replace(frozen={}).starting_from(params).frozen == {}
  other = first.starting_from(params)
  for tree in (other.params, other.ema, other.frozen):
    jax.tree.map(np.testing.assert_array_equal, tree, params)


@pytest.mark.parametrize(
  ("objective", "ema", "message"),
  [
    (Follow("ema"), 0.0, r"using='ema'.*Set config\.ema"),
    (Forgetful("frozen"), 0.9, r"using='frozen'.*Set `frozen = True`"),
    (Follow("best"), 0.9, r"using='best'\): expected one of online, ema, frozen"),
  ],
)
def test_parameters_that_are_not_kept_are_an_error(objective, ema, message):
  setup = setup_of(objective, ema=ema)
  loss = step_lib.make_loss(setup.config, setup.towers, objective)
  state, spec = setup.abstract_state(), setup.batch_spec()
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(loss, state.params, state, spec)


def test_a_checkpoint_for_a_copy_that_is_not_kept_is_an_error():
  config = tiny(frozen_from="runs/clip")
  with pytest.raises(
    ValueError, match=r"config\.frozen_from = 'runs/clip'.* no frozen"
  ):
    one_device(config)
  pairs = (("image", "text"),)
  config.objective.options.update(
    teacher="frozen", losses=(("distill", 1.0, dict(pairs=pairs)),)
  )
  assert one_device(config).objective.frozen


@pytest.mark.parametrize(
  ("ema", "warmup", "want"),
  [(1.0, False, 1.0), (0.9, False, 0.9), (0.9, True, 0.25), (0.2, True, 0.2)],
)
def test_the_average_keeps_its_share_from_the_first_step_on(ema, warmup, want):
  config = tiny(ema=ema, ema_warmup=warmup)
  np.testing.assert_allclose(step_lib._decay(config, jnp.int32(2)), want, rtol=1e-6)
