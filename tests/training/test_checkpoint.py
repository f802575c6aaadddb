"""Saving, restoring, keeping the best, and saying what does not fit."""

import jax
import numpy as np
import pytest

from tests.small import batch_of, one_device, tiny
from training import checkpoint
from training import setup as setup_lib


@pytest.fixture(scope="module")
def setup():
  return one_device(tiny())


@pytest.fixture(scope="module")
def state(setup):
  with jax.set_mesh(setup.mesh):
    state = setup.init_state()
    state, _ = setup.train_step()(state, setup.put(batch_of(setup.config)))
  return state


def options(**changes):
  c = tiny().checkpoint
  c.update(changes)
  return c


def same(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_array_equal(x, y), a, b)


def test_round_trip_is_exact_and_carries_the_data_state(setup, state, tmp_path):
  one = checkpoint.Checkpointer(str(tmp_path), options())
  one.save(1, state, {"next": 7})
  one.close()
  two = checkpoint.Checkpointer(str(tmp_path), options())
  restored, data = two.restore(setup.abstract_state())
  two.close()
  same(restored, state)
  assert data == {"next": 7}


def test_what_a_killed_save_left_behind_is_removed(state, tmp_path):
  one = checkpoint.Checkpointer(str(tmp_path), options())
  one.save(1, state, {})
  one.close()
  left = tmp_path / "checkpoints" / "step_00000002.orbax-checkpoint-tmp"
  left.mkdir()
  (left / "part").write_text("of a checkpoint")
  two = checkpoint.Checkpointer(str(tmp_path), options())
  assert not left.exists()  # at once, not by a thread that may outlive an error
  assert two.latest_step() == 1
  two.close()


def test_restores_onto_another_mesh(state, tmp_path):
  one = checkpoint.Checkpointer(str(tmp_path), options())
  one.save(1, state, {})
  config = tiny()
  config.mesh.update(dict(data=2, fsdp=4))
  eight = setup_lib.build(config)
  restored, _ = one.restore(eight.abstract_state())
  one.close()
  same(jax.device_get(restored), jax.device_get(state))
  kernel = restored.params["towers"]["trunk_image"]["block_00"]["mlp"]["up"]["kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size // 4


def test_keeps_the_latest_and_the_best(state, tmp_path):
  keeper = checkpoint.Checkpointer(str(tmp_path), options(keep=2, best="x"))
  for step, x in ((1, 0.1), (2, 0.9), (3, 0.3), (4, None), (5, 0.2)):
    keeper.save(step, state, {}, None if x is None else {"x": x})
  keeper.close()
  kept = sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*"))
  assert kept == ["step_00000002", "step_00000004", "step_00000005"]


def test_another_architecture_is_named_parameter_by_parameter(state, tmp_path):
  one = checkpoint.Checkpointer(str(tmp_path), options())
  one.save(1, state, {})
  one.close()
  one = checkpoint.Checkpointer(str(tmp_path), options())  # as a new process would
  config = tiny()
  config.model.modalities.text.vocab = 48
  other = one_device(config)
  with pytest.raises(ValueError, match=r"stem_text/embed.*\(32, 16\).*\(48, 16\)"):
    one.restore(other.abstract_state())
  config = tiny()
  config.model.trunk.depth = 2
  deeper = one_device(config)
  with pytest.raises(ValueError, match=r"block_01.*not in the file"):
    one.restore(deeper.abstract_state())
  one.close()


def test_init_from_takes_what_matches_and_reports_the_rest(setup, state, tmp_path):
  one = checkpoint.Checkpointer(str(tmp_path), options())
  one.save(1, state, {})
  one.close()
  config = tiny()
  config.model.modalities.text.vocab = 48
  other = one_device(config)
  with jax.set_mesh(other.mesh):
    fresh = other.init_state()
  shardings = jax.tree.map(lambda x: x.sharding, fresh.params)
  params, report = checkpoint.init_from(str(tmp_path), fresh.params, shardings)
  same(params["towers"]["stem_image"], state.params["towers"]["stem_image"])
  same(
    params["towers"]["stem_text"]["embed"]["embedding"],
    fresh.params["towers"]["stem_text"]["embed"]["embedding"],
  )
  assert len(report) == 1 and "stem_text/embed" in report[0]
  with pytest.raises(FileNotFoundError, match=r"config\.frozen_from: no checkpoint in"):
    where = str(tmp_path / "nowhere")
    checkpoint.init_from(where, fresh.params, shardings, "config.frozen_from")
  shapes = jax.eval_shape(lambda: {"other": fresh.params})
  with pytest.raises(
    ValueError, match=r"(?s)config\.init_from: none of the.*stem_image"
  ):
    checkpoint.init_from(str(tmp_path), shapes, {"other": shardings})


def test_unwritable_workdir_says_so(tmp_path):
  file = tmp_path / "file"
  file.write_text("")
  with pytest.raises(OSError, match=r"workdir .* is not writable"):
    checkpoint.check_workdir(str(file / "run"))
