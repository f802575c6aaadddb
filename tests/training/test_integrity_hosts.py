"""Two processes agree on which checkpoint is whole."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # four processes

HOST = """
import sys
import jax
import numpy as np
address, index, workdir = sys.argv[1:]
jax.distributed.initialize(address, 2, int(index))
from configs import base
from training import checkpoint
from training.state import TrainState

mesh = jax.make_mesh((2,), ("data",))

def array(values, *spec):
  at = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
  return jax.make_array_from_callback(values.shape, at, lambda i: values[i])

def state(n):
  x = np.random.default_rng(n).standard_normal((64, 64)).astype(np.float32)
  step, rng = array(np.int32(n)), array(np.zeros(2, np.uint32))
  return TrainState(step, {"a": array(x, "data")}, {}, {}, {}, rng)

keeper = checkpoint.Checkpointer(workdir, base.get_config().checkpoint, print)
if keeper.latest_step() is None:
  for n in (3, 6):
    keeper.save(n, state(n), {"next": n})
else:
  like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
  got, data = keeper.restore(jax.tree.map(like, state(0)))
  n = data["next"]
  for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(state(n))):
    for a, b in zip(mine.addressable_shards, theirs.addressable_shards):
      np.testing.assert_array_equal(a.data, b.data)
  print("restored", n)
keeper.close()
"""


def both(workdir):
  """Runs the two hosts; returns what each printed."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{s.getsockname()[1]}"
  env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
  env |= {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
    "PYTHONPATH": str(ROOT),
  }
  hosts = [
    subprocess.Popen(
      [sys.executable, "-c", HOST, address, str(i), str(workdir)],
      env=env,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    for i in range(2)
  ]
  found = [host.communicate(timeout=600) for host in hosts]
  for host, (_, errors) in zip(hosts, found):
    assert host.returncode == 0, errors[-3000:]
  return [out for out, _ in found]


def test_damage_that_one_host_finds_sends_both_back(tmp_path):
  both(tmp_path)
  folder = tmp_path / "checkpoints" / "step_00000006"
  files = [p for p in folder.rglob("*") if p.is_file() and p.parent != folder]
  # Dealt out largest first: whichever host reads it, the other does not.
  path = sorted(files, key=lambda p: p.stat().st_size)[-1]
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  for said in both(tmp_path):
    assert "the checkpoint of step 6 is damaged" in said
    assert said.endswith("restored 3\n")
  assert not folder.exists()
