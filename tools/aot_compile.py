"""Compiles a recipe's real train step for devices that nobody owns: does it fit.

python -m tools.aot_compile --config configs/limoe_h14.py --topology v5p:8x8x8 \\
  [--mesh data=4,fsdp=4,expert=32] [--slices 2] [--eval] [--set model.remat=full] \\
  [--json FILE]
python -m tools.aot_compile --table docs/results/aot/*.json [--short]

Prints memory per device against the chip's, the collectives by kind and mesh axes, and
a bound on the step time. Needs the compiler and no such device, as JAX runs on the CPU:
for TPUs `pip install -r requirements-aot.txt`; for GPUs (--topology h100:8, h100:4x8: 4
hosts) `pip install "jax[cuda13]"`. A step takes minutes to compile.

The bound (tools/roofline.py) takes matrix peak, memory and link rates from the table of
training/chips.py, with its sources, at 100 %: a lower bound of the step time and an
upper one of the MFU. Bytes of collectives are what one device sends; what stands in a
loop counts as often as the loop turns.
"""

import argparse
import ast
from collections.abc import Sequence
import importlib.metadata
import json
import pathlib
import sys
from typing import Any

from model import catalogue
from tools import aot_report, topology


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns 0 if the step fits, 1 if it does not."""
  parser = argparse.ArgumentParser(
    prog="python -m tools.aot_compile",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--config", help="configs/x.py or configs/x.py:arg")
  parser.add_argument(
    "--topology", help=f"e.g. {topology.EXAMPLES}; kinds: {', '.join(topology.KINDS)}"
  )
  parser.add_argument("--slices", type=int, default=1, help="of that topology")
  parser.add_argument("--mesh", default="", help="data=2,fsdp=4; default config.mesh")
  parser.add_argument(
    "--set",
    action="append",
    default=[],
    metavar="KEY=VALUE",
    help="any key of the config, e.g. batch_size=4096 or model.moe.every=0",
  )
  parser.add_argument(
    "--eval", action="store_true", help="the embedding step, not the train step"
  )
  parser.add_argument(
    "--unrolled",
    action="store_true",
    help="no scan over layers, so that the compiler's FLOPs count; compiles for long",
  )
  parser.add_argument("--json", help="write everything to this file")
  parser.add_argument("--hlo", help="write the compiled program's text to this file")
  parser.add_argument(
    "--table", nargs="+", metavar="FILE", help="print a table of such files"
  )
  parser.add_argument("--short", action="store_true", help="the README's table")
  flags = parser.parse_args(argv)
  if flags.table:
    found = [json.loads(pathlib.Path(p).read_text()) for p in flags.table]
    print((aot_report.short if flags.short else aot_report.table)(found))
    return 0
  if not flags.config or not flags.topology:
    parser.error("--config and --topology are needed, or --table")
  result = measured(flags, sys.argv[1:] if argv is None else argv)
  if flags.json:
    pathlib.Path(flags.json).write_text(json.dumps(result, indent=1) + "\n")
  print(aot_report.text(result))
  return 0 if result["verdict"] == "fits" else 1


def measured(flags: argparse.Namespace, argv: Sequence[str]) -> dict:
  """Compiles what the flags ask for; returns what `aot_step.measure` found, and how."""
  topology.prepare()
  # Only now: these import jax, which reads the environment.
  from tools import aot_step, explain_sharding
  from training import environment

  config = explain_sharding.load(flags.config)
  override(config, flags.set)
  if flags.mesh:
    sizes = explain_sharding.parse_mesh(flags.mesh)
    config.mesh.update(dict.fromkeys(config.mesh, 1) | sizes)
  if flags.unrolled:
    config.model.scan = False
  devices = topology.devices(flags.topology, flags.slices)
  result = aot_step.measure(config, devices, evaluate=flags.eval, hlo=flags.hlo)
  told = map(environment.without_folders, _without_files(argv))
  plugin = "libtpu" if devices[0].platform == "tpu" else "jax-cuda13-plugin"
  names = ("jax", "jaxlib", plugin, "flax", "optax")
  return {
    "topology": flags.topology,
    "slices": flags.slices,
    "set": flags.set,
    **result,
    "versions": {name: importlib.metadata.version(name) for name in names},
    "command": " ".join(["python -m tools.aot_compile", *told]),
  }


def override(config: Any, entries: Sequence[str]) -> None:
  """Sets `key=value` entries in a config; values are Python literals, or else text.

  Raises:
    ValueError: an entry without "=", or a key that the config lacks.
  """
  config.lock()
  for entry in entries:
    key, equals, value = entry.partition("=")
    if not equals:
      raise ValueError(f"--set {entry!r}: expected key=value, e.g. model.remat=full")
    try:
      literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
      literal = value
    _check_key(config, key)
    config.update_from_flattened_dict({key: literal})


def _check_key(config: Any, key: str) -> None:
  inside = config
  for name in key.split("."):
    # What is no part of a config is a value; or an empty one, which takes any key.
    if not hasattr(inside, "keys") or not len(inside):
      return
    if name not in inside:
      raise ValueError(
        f"--set {key}: the config has no {name!r}: "
        f"{catalogue.near_misses(name, list(inside))}"
      )
    inside = inside[name]


def _without_files(argv: Sequence[str]) -> list[str]:
  kept = list(argv)
  for flag in ("--json", "--hlo"):
    if flag in kept:
      at = kept.index(flag)
      del kept[at : at + 2]
  return kept


if __name__ == "__main__":
  topology.prepare()
  from training import errors  # only now: it imports jax

  with errors.shown(), errors.settings():
    sys.exit(main())
