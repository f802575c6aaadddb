"""Saving, restoring, keeping the best, and saying what does not fit."""

import jax
import numpy as np
import pytest

from tests.small import batch_of, one_device, tiny
from training import checkpoint, parameters
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


def everything(setup, seed):
  """A state with all there may be: average, frozen copy, a queue, moments; random."""
  abstract = setup.abstract_state()
  abstract = abstract.replace(ema=abstract.params, frozen=abstract.params)
  rng = np.random.default_rng(seed)

  def fill(x):
    values = rng.integers(0, 2, x.shape).astype(bool)
    if x.dtype != bool:
      values = rng.integers(0, 1 << 20, x.shape).astype(x.dtype)
    return jax.make_array_from_callback(x.shape, x.sharding, lambda i: values[i])

  return abstract, jax.tree.map(fill, abstract)


def on(devices, **mesh):
  config = tiny()
  config.objective.name = "moco"
  config.objective.options = dict(pairs=(("image", "text"),), queue=32)
  config.ema = 0.99
  config.mesh.update(dict(data=1) | mesh)
  return setup_lib.build(config, devices=jax.devices()[:devices])


def test_restores_onto_8_then_4_then_1_then_8_devices(tmp_path):
  meshes = [
    (8, dict(data=2, fsdp=4)),
    (4, dict(data=4)),
    (1, {}),
    (8, dict(fsdp=2, tensor=2, data=2)),
  ]
  abstract, first = everything(on(8, **meshes[0][1]), seed=1)
  got = first
  for i, (devices, mesh) in enumerate(meshes):
    keeper = checkpoint.Checkpointer(str(tmp_path), options())
    if i:
      abstract, _ = everything(on(devices, **mesh), seed=2)
      got, data = keeper.restore(abstract)
      assert data == {"next": i}
    same(jax.device_get(got), jax.device_get(first))
    for x, wanted in zip(jax.tree.leaves(got), jax.tree.leaves(abstract)):
      assert x.sharding.is_equivalent_to(wanted.sharding, x.ndim)
    if i < len(meshes) - 1:
      keeper.save(i + 1, got, {"next": i + 1})
    keeper.close()
  kernel = got.params["towers"]["trunk_image"]["block_00"]["mlp"]["up"]["kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size // 4
  assert jax.tree.leaves(got.objective_state) and got.ema and got.frozen


def test_keeps_the_latest_and_the_best(state, tmp_path):
  keeper = checkpoint.Checkpointer(str(tmp_path), options(keep=2, best="x"))
  for step, x in ((1, 0.1), (2, 0.9), (3, 0.3), (4, None), (5, 0.2)):
    keeper.save(step, state, {}, None if x is None else {"x": x})
  keeper.close()
  kept = sorted(p.name for p in (tmp_path / "checkpoints").glob("step_*"))
  assert kept == ["step_00000002", "step_00000004", "step_00000005"]


def test_the_best_and_every_nth_stay_when_the_run_is_resumed(state, tmp_path):
  settings = dict(keep=1, best="x", every=1, keep_every=4, mode="min")
  for step, x in ((1, 0.9), (2, 0.1), (3, 0.3), (4, None), (5, None), (6, 0.2)):
    keeper = checkpoint.Checkpointer(str(tmp_path), options(**settings))
    keeper.save(step, state, {}, None if x is None else {"x": x})
    keeper.close()
  kept = sorted(p.name[-1] for p in (tmp_path / "checkpoints").glob("step_*"))
  assert kept == ["2", "4", "6"]


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    (dict(every=500, keep_every=750), "750 is not a multiple of .*every = 500"),
    (dict(keep=0), "keep = 0 would delete every checkpoint"),
  ],
)
def test_retention_that_cannot_be_is_refused(tmp_path, changes, says):
  with pytest.raises(ValueError, match=says):
    checkpoint.Checkpointer(str(tmp_path), options(**changes))


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


def test_one_tower_alone_is_taken_and_counted(setup, state, tmp_path):
  checkpoint.write_params(str(tmp_path / "start"), state.params)
  with jax.set_mesh(setup.mesh):
    fresh = setup.init_state().params
  fresh = jax.tree.map(lambda x: x + 1, fresh)
  places = jax.tree.map(lambda x: x.sharding, fresh)
  image = (r"towers/[a-z]+_image/",)
  start = str(tmp_path / "start")
  got, report = checkpoint.init_from(start, fresh, places, "config.init_from", image)
  same(got["towers"]["trunk_image"], state.params["towers"]["trunk_image"])
  same(got["towers"]["trunk_text"], fresh["towers"]["trunk_text"])
  assert report == []
  lines = parameters.taken(fresh, got)
  assert [line.split(":")[0].strip() for line in lines] == [
    "towers/project_image",
    "towers/stem_image",
    "towers/trunk_image",
  ]
  n = sum(x.size for x in jax.tree.leaves(state.params["towers"]["stem_image"]))
  assert f"stem_image: 3 arrays, {n:,} parameters" in lines[1]
  with pytest.raises(ValueError, match=r"'imgae',\) is found in no path .*init_only"):
    checkpoint.init_from(start, fresh, places, "config.init_from", ("imgae",))


def test_unwritable_workdir_says_so(tmp_path):
  file = tmp_path / "file"
  file.write_text("")
  with pytest.raises(OSError, match=r"workdir .* is not writable"):
    checkpoint.check_workdir(str(file / "run"))
