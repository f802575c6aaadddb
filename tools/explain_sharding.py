"""Prints where every parameter of a recipe goes: rule, spec and bytes per chip.

python -m tools.explain_sharding --config configs/limoe_l16.py --mesh data=4,fsdp=64
Needs no chips: the mesh is abstract.
"""

import argparse
from collections.abc import Sequence
import importlib.util
import math
import pathlib
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from model import catalogue
from model.shapes import example_spec
from model.types import MESH_AXES
from sharding import mesh as meshes
from sharding import placement
from training import errors


def main(argv: Sequence[str] | None = None) -> None:
  """Parses the flags and prints the table."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--config", required=True, help="configs/x.py or configs/x.py:arg"
  )
  parser.add_argument(
    "--mesh", default="", help="e.g. data=2,fsdp=4; default config.mesh on one device"
  )
  parser.add_argument(
    "--all",
    action="store_true",
    help="one line a parameter; default merges equal blocks",
  )
  flags = parser.parse_args(argv)
  config = load(flags.config)
  mesh = abstract_mesh(flags.mesh, config.mesh)
  with jax.sharding.use_abstract_mesh(mesh):
    params = abstract_params(config) | {"objective": abstract_own(config)}
  print(placement.explain(params, mesh, config.sharding.rules, merge=not flags.all))


def load(flag: str) -> Any:
  """Returns `get_config(arg)` of `path.py:arg`.

  Raises:
    FileNotFoundError: no such file.
  """
  name, _, arg = flag.partition(":")
  path = pathlib.Path(name)
  if not path.is_file():
    raise FileNotFoundError(f"--config {name}: no such file")
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(arg)


def abstract_mesh(text: str, default: Any) -> AbstractMesh:
  """Returns the mesh that `data=2,fsdp=4` speaks of, without devices.

  Raises:
    ValueError: an entry that is not axis=number, or an unknown axis.
  """
  sizes = parse_mesh(text) if text else dict(default)
  count = math.prod(max(size, 1) for size in sizes.values())
  sizes = meshes.shape(sizes, count)
  types = (AxisType.Auto,) * len(MESH_AXES)
  return AbstractMesh(tuple(sizes.values()), MESH_AXES, axis_types=types)


def parse_mesh(text: str) -> dict[str, int]:
  """Returns {axis: size} of `data=2,fsdp=4`.

  Raises:
    ValueError: an entry that is not axis=number.
  """
  sizes = {}
  for entry in text.split(","):
    axis, equals, size = entry.strip().partition("=")
    if not equals or not size.isdecimal():
      raise ValueError(f"--mesh has {entry!r}; expected axis=number, e.g. fsdp=4")
    sizes[axis] = int(size)
  return sizes


def abstract_params(config: Any) -> Any:
  """Returns the shapes of `{"towers": ...}` of a recipe; computes nothing."""
  from model.encoders import towers  # heavy, and not needed for --help

  model = towers.build(config.model)
  batch = {}
  for name, modality in config.model.modalities.items():
    shape, dtype = example_spec(modality)
    batch[name] = jax.ShapeDtypeStruct((1, *shape), dtype)
  rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
  rngs["router"] = rngs["dropout"]
  return {"towers": jax.eval_shape(model.init, rngs, batch)["params"]}


def abstract_own(config: Any) -> Any:
  """Returns the shapes of the objective's own parameters; computes nothing."""
  from model.encoders import towers  # as above
  from training import setup as setup_lib

  objective = catalogue.load(
    "model.objectives",
    config.objective.name,
    "Objective",
    dict(config.objective.options),
  )
  model = towers.build(config.model)
  spec = setup_lib.batch_spec(config, model, config.batch_size)
  return jax.eval_shape(lambda: objective.init(jax.random.key(0), model, spec)[0])


if __name__ == "__main__":
  with errors.shown(), errors.settings():
    main()
