"""What the losses by rings need at a million pairs, as the TPU's compiler says."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
MIB = 2**20


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is None,
  reason="libtpu is no dev requirement: pip install -r requirements-aot.txt",
)
@pytest.mark.parametrize("loss", ["infonce", "symile"])
def test_a_million_pairs_need_less_than_64_mib_a_chip(loss, tmp_path):
  out = tmp_path / "memory.json"
  what = f"--aot v5e:16x16 --losses {loss} --dim 768 --batch 1048576 --strategies ring"
  subprocess.run(
    [sys.executable, "-m", "benchmarks.losses", *what.split(), "--out", str(out)],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
    check=True,
  )
  (row,) = json.loads(out.read_text())["results"]
  assert row["temp_bytes"] < 64 * MIB
