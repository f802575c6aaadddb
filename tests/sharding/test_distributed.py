import os
import pathlib
import socket
import subprocess
import sys

import pytest

from sharding import distributed, launch

ROOT = pathlib.Path(__file__).parents[2]
ADDRESS = {"JAX_COORDINATOR_ADDRESS": "10.0.0.2:8476"}


def test_a_process_on_its_own_does_nothing():
  assert launch.detect({}) is None
  assert launch.detect({"JAX_PLATFORMS": "cpu", "SLURM_NTASKS": "1"}) is None
  one = ADDRESS | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}
  assert launch.detect(one) is None
  # Other tools use these names; without an address they are not ours.
  assert launch.detect({"NUM_PROCESSES": "4", "PROCESS_ID": "1"}) is None


@pytest.mark.parametrize(
  ("nodes", "first"),
  [("n1,n2", "n1"), ("n[001-004,9],m", "n001"), ("n[7,9]", "n7"), ("alone", "alone")],
)
def test_the_roll_of_a_slurm_step(nodes, first):
  env = {"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": nodes}
  step = launch.detect(env | {"SLURM_PROCID": "3", "SLURM_JOB_ID": "8193"})
  assert (step.index, step.count, step.roll) == (3, 4, f"{first}:57345")
  assert step.address is None  # JAX finds its own


def test_initialize_alone_leaves_jax_alone(monkeypatch):
  def never(**_):
    raise AssertionError("jax.distributed.initialize was called")

  for name in list(os.environ):
    if name.startswith(("JAX_COORD", "JAX_NUM_P", "JAX_PROC", "SLURM", "OMPI")):
      monkeypatch.delenv(name)
  monkeypatch.setattr(distributed.jax.distributed, "initialize", never)
  monkeypatch.setattr(launch, "_has_tpu", lambda: False)
  distributed.initialize()


@pytest.mark.parametrize("prefix", ["JAX_", ""])
def test_explicit_variables(prefix):
  env = {"COORDINATOR_ADDRESS": "10.0.0.2:1", "NUM_PROCESSES": "4", "PROCESS_ID": "3"}
  told = launch.detect({f"{prefix}{k}": v for k, v in env.items()})
  assert told == launch.Launch(
    launcher="environment", address="10.0.0.2:1", count=4, index=3, roll="10.0.0.2:2"
  )


@pytest.mark.parametrize(
  ("env", "launcher"),
  [
    ({"SLURM_NTASKS": "4", "SLURM_STEP_NODELIST": "n[1-2]"}, "slurm"),
    ({"SLURM_NTASKS": "4"}, None),  # an allocation's shell: no step, no peers
    ({"OMPI_COMM_WORLD_SIZE": "2"}, "ompi"),
    ({"KUBERNETES_SERVICE_HOST": "x", "JOB_COMPLETION_INDEX": "0"}, "k8s"),
    ({"KUBERNETES_SERVICE_HOST": "x"}, None),  # any pod has that
  ],
)
def test_launchers_that_jax_reads(env, launcher, monkeypatch):
  monkeypatch.setattr(launch, "_has_tpu", lambda: False)
  told = launch.detect(env)
  assert (told and told.launcher) == launcher


def test_tpu_machines_ask_jax_unless_the_platform_says_otherwise(monkeypatch):
  monkeypatch.setattr(launch, "_has_tpu", lambda: True)
  assert launch.detect({}) == launch.Launch(launcher="tpu")
  assert launch.detect({"JAX_PLATFORMS": "cpu"}) is None


def test_a_lone_tpu_machine_is_a_single_process(monkeypatch):
  def no_cluster(**_):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(distributed, "detect", lambda _: launch.Launch(launcher="tpu"))
  monkeypatch.setattr(distributed.jax.distributed, "initialize", no_cluster)
  distributed.initialize()


def test_a_failure_of_jax_is_explained(monkeypatch):
  def busy(**_):
    raise RuntimeError("address already in use")

  told = launch.Launch(launcher="environment", address="h:1", count=2, index=0)
  monkeypatch.setattr(distributed, "detect", lambda _: told)
  monkeypatch.setattr(distributed.jax.distributed, "initialize", busy)
  with pytest.raises(RuntimeError, match=r"process 0 of 2 .* h:1.*\n.*already in use"):
    distributed.initialize()


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"JAX_PROCESS_ID": ""}, r"JAX_NUM_PROCESSES=2, but not JAX_PROCESS_ID"),
    ({"JAX_NUM_PROCESSES": "two"}, r"JAX_NUM_PROCESSES='two' is no whole number"),
    ({"JAX_PROCESS_ID": "2"}, r"JAX_PROCESS_ID=2 is not below JAX_NUM_PROCESSES=2"),
    ({"JAX_COORDINATOR_ADDRESS": "host"}, r"'host' is not host:port"),
  ],
)
def test_wrong_variables(changes, message):
  env = ADDRESS | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"} | changes
  with pytest.raises(ValueError, match=message):
    launch.detect(env)


def start(code, index, address, count=2, devices=2):
  variables = {
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": str(count),
    "JAX_PROCESS_ID": str(index),
  }
  return spawn(code, variables, devices)


def spawn(code, variables, devices=2):
  env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
  env |= {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    "PYTHONPATH": str(ROOT),
  }
  return subprocess.Popen(
    [sys.executable, "-c", code],
    env=env | variables,
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def finish(process, timeout=120):
  try:
    out, err = process.communicate(timeout=timeout)
  finally:
    process.kill()
  return process.returncode, out, err


def free_address():
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return f"127.0.0.1:{s.getsockname()[1]}"


MEET = """
from sharding import distributed
distributed.initialize(join_s=100)
distributed.initialize()  # again: harmless
import jax, numpy as np
import jax.numpy as jnp
from jax.experimental import multihost_utils
from sharding import mesh as meshes, placement
mesh = meshes.make({"data": 2, "fsdp": -1})
index, count = placement.data_shard(mesh)
local = {"x": np.arange(4, dtype=np.float32) + 4 * index}
batch = placement.put_batch(local, mesh)
params = placement.init_sharded(
  lambda k: {"kernel": jax.random.normal(k, (4, 2))}, (), mesh, jax.random.key(0))
total = jax.jit(jnp.sum)(batch["x"])
seen = multihost_utils.process_allgather(np.int32(jax.process_index()))
shards = {s.data.shape for s in params["kernel"].addressable_shards}
print(jax.process_count(), mesh.size, (index, count), batch["x"].shape, float(total),
      seen.tolist(), shards, meshes.batch_sharding(mesh) == batch["x"].sharding,
      distributed._watch.connected.is_set())
"""


def test_two_processes_meet_and_share_a_batch():
  """As Open MPI starts them: nothing is known before JAX has detected it."""
  job = int(free_address().split(":")[1]) * 4096
  common = {
    "OMPI_MCA_orte_hnp_uri": f"{job}.0;tcp://127.0.0.1:1",
    "OMPI_COMM_WORLD_SIZE": "2",
  }
  numbers = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
  processes = [spawn(MEET, common | dict.fromkeys(numbers, str(i))) for i in range(2)]
  for i, (code, out, err) in enumerate([finish(p) for p in processes]):
    assert code == 0, err[-2000:]
    line = f"2 4 ({i}, 2) (8,) 28.0 [0, 1] {{(2, 2)}} True True"
    assert line in out.splitlines()  # among what gloo prints


ALONE = """
from sharding import distributed
try:
  distributed.initialize(join_s=2)
except RuntimeError as error:
  print(error)
  raise SystemExit(3)
"""


def test_a_missing_peer_is_a_readable_error():
  address = free_address()
  orphan = start(ALONE, 1, address)
  code, out, err = finish(orphan)
  assert code == 3, err[-2000:]
  assert f"process 1 of 2 could not join the others: coordinator {address}" in out
  assert "timeout 2 s" in out
  assert f"nothing listens at {address}: process 0 is not running" in out


def test_all_who_came_name_the_one_who_did_not():
  address = free_address()
  here = [start(ALONE, i, address, count=3) for i in (0, 1)]
  for process in here:
    code, out, err = finish(process)
    assert code == 3, err[-2000:]
    assert "process 2 of 3 never joined within 2 s (config.hosts.join_s)" in out
    assert f"Joined: 0 on {socket.gethostname()}, 1 on" in out


ENDS = """
import os, time
from sharding import distributed
distributed.initialize(join_s=100, lost_s=10)
import jax
class Explained(Exception):
  status = 2
with distributed.together():
  if jax.process_index() == 1:
    HOW
  time.sleep(100)  # in a collective that waits for the other
"""


@pytest.mark.parametrize(
  ("how", "statuses", "said"),
  [
    ("os.kill(os.getpid(), 9)", (75, -9), "was lost: its connection closed"),
    ("raise Explained('too many dropped')", (2, 2), "failed: too many dropped"),
  ],
)
def test_one_that_ends_ends_the_other_with_its_name(how, statuses, said):
  address = free_address()
  both = [start(ENDS.replace("HOW", how), i, address, devices=1) for i in range(2)]
  ended = [finish(p) for p in both]
  assert tuple(code for code, _, _ in ended) == statuses, ended
  last = ended[0][2].splitlines()[-1]
  assert last.startswith(f"error: process 1 of 2 ({socket.gethostname()}) {said}")
