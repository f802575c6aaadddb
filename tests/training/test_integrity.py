"""Damaged files are found, the step before is used, and full disks end no run."""

import errno
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from training import checkpoint, integrity
from training.state import TrainState


def options(**changes):
  c = base.get_config().checkpoint
  c.update(changes)
  return c


def state_of(n):
  x = jax.random.normal(jax.random.key(n), (50, 20))
  rng = jnp.zeros(2, jnp.uint32)
  return TrainState(jnp.int32(n), {"a": x}, {"m": x}, {"queue": x}, {}, rng)


def abstract():
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  return jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), state_of(0)
  )


def saved(workdir, *steps, **changes):
  keeper = checkpoint.Checkpointer(str(workdir), options(**changes))
  for step in steps:
    keeper.save(step, state_of(step), {"next": step})
  keeper.close()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("original")
  saved(workdir, 3, 6)
  return workdir


@pytest.fixture
def workdir(original, tmp_path):
  return shutil.copytree(original, tmp_path / "run")


def folder(workdir, step):
  return workdir / "checkpoints" / f"step_{step:08d}"


def items(path):
  """The files that hold something, and the digests themselves."""
  return sorted(p for p in path.rglob("*") if p.is_file() and p.parent != path)


def flip(path, at=0.5, bit=3):
  data = bytearray(path.read_bytes())
  data[int(len(data) * at)] ^= 1 << bit
  path.write_bytes(data)


def resumed(workdir, **changes):
  """What a new process finds: (step, its state, what it says)."""
  told = []
  keeper = checkpoint.Checkpointer(str(workdir), options(**changes), told.append)
  state, data = keeper.restore(abstract())
  keeper.close()
  step = int(state.step)
  assert data == {"next": step}
  jax.tree.map(np.testing.assert_array_equal, state, state_of(step))
  return step, "\n".join(told)


def test_whole_files_pass_in_silence(workdir):
  assert integrity.damage(folder(workdir, 6)) == []
  assert resumed(workdir) == (6, "")


def test_a_bit_in_any_file_is_found(workdir):
  path = folder(workdir, 6)
  files = items(path)
  assert len(files) > 8
  for file in files:
    before = file.read_bytes()
    flip(file)
    (found,) = integrity.damage(path)
    assert found.startswith(f"{file.relative_to(path)}: its bytes are not")
    file.write_bytes(before[:-1])
    assert "were written" in integrity.damage(path)[0]
    file.unlink()
    assert "No such file" in integrity.damage(path)[0]
    file.write_bytes(before)
  for at in np.linspace(0.01, 0.99, 25):
    flip(path / integrity.FILE, at)
    assert integrity.damage(path) != []
    flip(path / integrity.FILE, at)
  assert integrity.damage(path) == []


def test_hosts_share_the_files(workdir):
  path = folder(workdir, 6)
  flip(items(path)[0])
  shares = [integrity.damage(path, part, 3) for part in range(3)]
  assert sorted(map(len, shares)) == [0, 0, 1]


def test_the_step_before_a_damaged_one_is_used_and_it_says_so(workdir):
  flip(max(items(folder(workdir, 6)), key=lambda p: p.stat().st_size))
  step, told = resumed(workdir)
  assert step == 3
  assert "the checkpoint of step 6 is damaged (state/" in told
  assert "newest whole checkpoint is that of step 3" in told
  assert not folder(workdir, 6).exists()
  assert (workdir / "checkpoints" / "step_00000006.damaged").exists()
  saved(workdir, 6)  # the run comes to this step again
  assert resumed(workdir) == (6, "")


def test_only_damaged_ones_is_an_error_that_changes_nothing(workdir):
  for step in (3, 6):
    flip(items(folder(workdir, step))[-1])
  with pytest.raises(ValueError, match=r"(?s)every checkpoint is damaged:.*step 6.*st"):
    resumed(workdir)
  assert folder(workdir, 3).exists() and folder(workdir, 6).exists()


@pytest.mark.parametrize("gone", [["digests.json"], ["digests.json", "_CHECK*"]])
def test_a_half_deleted_step_is_damaged(workdir, gone):
  for pattern in gone:
    next(folder(workdir, 6).glob(pattern)).unlink()
  step, told = resumed(workdir)
  assert step == 3 and "step 6 is damaged (digests.json: missing" in told


def test_steps_without_digests_are_taken_as_they_are(tmp_path):
  saved(tmp_path, 3, digests=False)
  assert integrity.damage(folder(tmp_path, 3)) is None
  assert resumed(tmp_path) == (3, "")


def test_an_old_step_whose_metrics_are_broken_does_not_stop_the_run(tmp_path):
  keeper = checkpoint.Checkpointer(str(tmp_path), options(best="x"))
  for step in (3, 6):
    keeper.save(step, state_of(step), {"next": step}, {"x": 1.0})
  keeper.close()
  (folder(tmp_path, 3) / "metrics" / "metrics").write_text("{")
  step, told = resumed(tmp_path, best="x")
  assert step == 6 and "step 3 is damaged (metrics/metrics" in told


def test_init_from_refuses_a_damaged_checkpoint(workdir):
  flip(items(folder(workdir, 6))[0])
  where = jax.tree.map(lambda x: x.sharding, state_of(0).params)
  with pytest.raises(ValueError, match=r"config\.init_from: the checkpoint .* damaged"):
    checkpoint.init_from(str(workdir), state_of(0).params, where)


@pytest.fixture
def disk(monkeypatch):
  """A disk that is full while `full` is in it."""
  states = []
  write = integrity.write

  def fails(path):
    if states:
      raise OSError(errno.ENOSPC, "No space left on device")
    write(path)

  monkeypatch.setattr(integrity, "write", fails)
  return states


def test_a_failed_save_is_told_of_and_the_next_one_tries_again(tmp_path, disk):
  told = []
  keeper = checkpoint.Checkpointer(str(tmp_path), options(keep=1), told.append)
  keeper.save(1, state_of(1), {"next": 1})
  keeper.wait()
  for step in (2, 3):
    disk.append("full")
    keeper.save(step, state_of(step), {"next": step})
    with pytest.raises(
      checkpoint.SaveFailed, match="the last checkpoint was not saved"
    ):
      keeper.wait()
    assert f"of step {step} was not saved: [Errno 28] No space left" in told[-1]
    assert "Training goes on" in told[-1] and "step_00000001" in told[-1]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]
    disk.clear()
  keeper.save(4, state_of(4), {"next": 4})
  keeper.wait()
  assert keeper.latest_step() == 4
  keeper.close()
  assert resumed(tmp_path) == (4, "")
  assert not folder(tmp_path, 1).exists()


def test_more_failures_in_a_row_than_retries_stop_the_run(tmp_path, disk):
  keeper = checkpoint.Checkpointer(str(tmp_path), options(retries=1), lambda text: None)
  keeper.save(1, state_of(1), {"next": 1})
  keeper.wait()
  disk.append("full")
  with pytest.raises(checkpoint.SaveFailed, match=r"(?s)step 3 was not.*step_00000001"):
    for step in (2, 3, 4):
      keeper.save(step, state_of(step), {})
  disk.clear()
  keeper.close()
  assert resumed(tmp_path)[0] == 1


def test_looking_does_not_wait_and_tells(tmp_path, disk):
  told = []
  keeper = checkpoint.Checkpointer(str(tmp_path), options(), told.append)
  disk.append("full")
  keeper.save(2, state_of(2), {})
  while not told:
    keeper.look()
  keeper.close()
  assert "was not saved" in told[0]


def test_remains_that_are_still_written_to_do_not_end_the_run(
  tmp_path, disk, monkeypatch
):
  told = []
  keeper = checkpoint.Checkpointer(str(tmp_path), options(), told.append)
  clear, busy = checkpoint._clear_interrupted, ["a thread that still writes there"]

  def clears(directory):
    if busy:
      raise OSError(errno.ENOTEMPTY, busy.pop())
    clear(directory)

  monkeypatch.setattr(checkpoint, "_clear_interrupted", clears)
  disk.append("full")
  keeper.save(2, state_of(2), {})
  while not told:
    keeper.look()
  disk.clear()
  keeper.save(4, state_of(4), {"next": 4})
  keeper.wait()
  keeper.close()
  assert "was not saved" in told[0] and not busy
  assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step_00000004"]
