"""Runs tools.aot_compile on a tiny recipe, in a process of its own."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
CONFIG = """
from configs import base

def get_config(arg=""):
  c = base.get_config(arg)
  c.name = "tiny"
  c.batch_size = 32
  c.model.embed_dim = 128
  c.model.shared_trunk = True
  c.model.dtype = "bfloat16"
  c.model.scan = True
  c.model.trunk.update(dict(width=128, depth=4, heads=1, mlp=256))
  c.model.modalities.image.update(dict(size=(16, 16, 3), patch=(8, 8)))
  c.model.modalities.text.update(dict(vocab=64, length=4))
  c.model.moe.update(dict(every=2, experts=4, group=4, capacity=1.0, capacity_eval=1.0))
  c.model.moe.min_experts = dict(text=2.0, image=2.0)
  return c
"""


def run(arguments, tmp_path):
  path = tmp_path / "tiny.py"
  path.write_text(CONFIG)
  # A process of its own: nothing of the TPU compiler may stay in the tests'.
  command = [sys.executable, "-m", "tools.aot_compile", "--config", str(path)]
  done = subprocess.run(
    [*command, *arguments, "--json", str(tmp_path / "out.json")],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    timeout=900,
  )
  return done, tmp_path / "out.json"
