"""The import directions of DESIGN section 3, file sizes and names, by an ast walk."""

import ast
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("configs", "model", "sharding", "input_pipeline", "evaluators", "training")
TOP = ("train", "tools", "benchmarks", "notebooks")
# What everybody may import.
FREE = ("model.types", "model.catalogue", "model.mel", "model.shapes")

# A part of the house -> the other parts that it may import, whatever lies in them. The
# longest name that is a prefix of a module decides; a part may always import itself.
MAY = {
  "configs": (),
  "model.types": (),
  "model.catalogue": (),
  "model.mel": (),
  "model.shapes": ("model.mel",),
  "model.layers": (),
  "model.moe": ("model.layers",),
  "model.encoders": ("model.layers", "model.moe"),
  "model.heads": ("model.layers",),
  "model.losses": (),
  "model.losses.reduce": ("model.losses", "sharding.mesh"),  # the ambient mesh
  "model.interop": ("configs", "model.encoders", "model.layers"),
  "model.views": ("model.layers",),  # for log_mel
  "model.objectives": ("model.losses", "model.heads", "model.views"),
  "sharding": (),
  "input_pipeline": (),
  "evaluators": ("sharding", "input_pipeline", "model.losses"),
  "training": PACKAGES,
}
HEAVY = ("tensorflow", "torch")
FILES = [
  path
  for top in (*PACKAGES, *TOP, "train.py", "tests")
  for path in sorted((ROOT / top).rglob("*.py") if "." not in top else [ROOT / top])
  if path.exists() and ".ipynb_checkpoints" not in path.parts
]


def module(path):
  parts = list(path.relative_to(ROOT).with_suffix("").parts)
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(name, parts=MAY):
  """Returns the longest entry of `parts` that `name` is or lies in."""
  known = [p for p in parts if name == p or name.startswith(p + ".")]
  return max(known, key=len, default=None)


def imports(tree):
  """Yields (line, module) of every import, lazy ones included."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      if node.level:
        yield node.lineno, "." * node.level
        continue
      # `from model import types` imports model.types, not model.
      yield from ((node.lineno, f"{node.module}.{a.name}") for a in node.names)


def complaints(name, source):
  """Returns what a module's imports break, one line each."""
  me, found = part(name), []
  if me is None and name.split(".")[0] in PACKAGES and "." in name:
    found.append(f"{name}: add a row to MAY here and to DESIGN section 3")
  for line, target in imports(ast.parse(source)):
    if target.startswith("."):
      found.append(
        f"{name}:{line}: relative import; write `from model.losses import x`"
      )
    head = target.split(".")[0]
    if head in HEAVY and not name.startswith(("benchmarks", "tests")):
      found.append(f"{name}:{line}: imports {target}; nothing here needs {head}")
    if name.startswith("input_pipeline.transforms") and head in ("jax", "flax"):
      found.append(f"{name}:{line}: imports {target}; transforms are numpy only")
    if head not in (*PACKAGES, *TOP) or me is None:
      continue
    if part(target, (me, *FREE, *MAY[me])) is None:
      found.append(f"{name}:{line}: {me} may not import {target}")
  return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_the_house(path):
  assert complaints(module(path), path.read_text()) == []


@pytest.mark.parametrize(
  ("name", "source", "complains"),
  [
    ("model.losses.dcl", "from model.losses import reduce", False),
    ("model.losses.dcl", "from model import types, catalogue", False),
    ("model.losses.dcl", "from sharding import mesh", True),
    ("model.losses.reduce", "from sharding import mesh", False),
    ("model.losses.reduce", "from sharding import rules", True),
    ("model.layers.norm", "def f():\n  import model.moe.router", True),
    ("model.objectives.moco", "from model.encoders import towers", True),
    ("model.objectives.moco", "from model.heads.mlp import Head", False),
    ("sharding.rules", "from training import loop", True),
    ("configs.limoe", "from configs import base", False),
    ("configs.limoe", "from model.types import Array", False),
    ("evaluators.retrieval", "from model.encoders import towers", True),
    ("evaluators.retrieval", "from model.losses import reduce", False),
    ("training.loop", "from evaluators import context", False),
    ("training.loop", "from tools import report", True),
    ("tools.report", "from training import loop", False),
    ("input_pipeline.pipeline", "import jax", False),
    ("input_pipeline.transforms.crop", "import jax.numpy as jnp", True),
    ("input_pipeline.sources.x", "import tensorflow_datasets as tfds", False),
    ("input_pipeline.sources.x", "import tensorflow as tf", True),
    ("training.step", "def f():\n  from torch import nn", True),
    ("benchmarks.torch_twin", "import torch", False),
    ("model.moe.router", "from . import config", True),
    ("model.brand_new", "from model.layers import norm", True),
  ],
)
def test_the_walk_sees_what_it_should(name, source, complains):
  assert bool(complaints(name, source)) == complains


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_are_small_and_named_for_what_they_hold(path):
  assert "utils" not in path.stem
  lines = len(path.read_text().splitlines())
  assert lines < 400, f"{path.relative_to(ROOT)} has {lines} lines: split it"


IMPORT_ALL = """
import importlib, importlib.util, pathlib, sys
for heavy in ("tensorflow", "torch"):
  sys.modules[heavy] = None  # an import of it raises
KERNELS = ("model", "layers", "kernels")
for top in sys.argv[1:]:
  path = pathlib.Path(top)
  for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
    parts = file.with_suffix("").parts
    if parts[:3] == KERNELS and not importlib.util.find_spec("triton"):
      continue  # they are imported where there is a GPU
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    importlib.import_module(name)
    assert sys.modules["tensorflow"] is None and sys.modules["torch"] is None
print("imported")
"""


def test_everything_imports_without_tensorflow_and_torch():
  tops = [t for t in ("train.py", *PACKAGES) if (ROOT / t).exists()]
  done = subprocess.run(
    [sys.executable, "-c", IMPORT_ALL, *tops],
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert done.stdout.strip().endswith("imported")
