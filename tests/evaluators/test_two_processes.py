"""What evaluators do on a mesh of two processes: both enter, both get the same."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow  # each process compiles its own programs
ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = """
import json, sys
import numpy as np
from sharding import distributed
distributed.initialize()
import jax
from evaluators import features, fit, gallery
from sharding import mesh as meshes
from tests.evaluators import test_gallery
from tests.evaluators.test_probe import CLASSES, data

assert jax.process_count() == 2 and jax.device_count() == 4
mesh = meshes.make(dict(data=2, fsdp=2))
x = test_gallery.case(True)
found = gallery.stream(*x, mesh=mesh, k=7, block=4, tile=16)
test_gallery.same(found, gallery.search(*x, k=7))
x, y, queries, truth = data()
train, test = (
  features.Labelled(a, b, np.arange(len(b))) for a, b in ((x, y), (queries, truth))
)
w = fit.lbfgs(train, CLASSES, 1e-1, mesh)["w"]
steps = dict(rule="adam", lr=0.1, l2=0.0, epochs=2, batch_size=16)
adam = fit.by_steps(fit.linear, fit.zeros(x.shape[1], CLASSES), train, mesh, **steps)
predicted = fit.predict(fit.linear, adam, test, mesh)
out = dict(rank=found.rank, w=w, adam=adam["w"], predicted=predicted)
with open(sys.argv[1], "w") as f:
  json.dump({k: v.tolist() for k, v in out.items()}, f)
"""


def test_two_processes_get_the_same(tmp_path):
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    address = f"127.0.0.1:{s.getsockname()[1]}"
  env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
  env |= {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=2"),
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": "2",
    "PYTHONPATH": str(ROOT),
  }
  files = [tmp_path / f"{i}.json" for i in range(2)]
  pair = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM, str(file)],
      cwd=ROOT,
      env=env | {"JAX_PROCESS_ID": str(i), "PYTHONHASHSEED": str(i + 1)},
      stderr=subprocess.PIPE,
      text=True,
    )
    for i, file in enumerate(files)
  ]
  try:
    for process in pair:
      _, err = process.communicate(timeout=600)
      assert process.returncode == 0, err[-3000:]
  finally:
    for process in pair:
      process.kill()
      process.wait()
  first, second = (json.loads(file.read_text()) for file in files)
  assert first == second and len(first["rank"]) == 45
