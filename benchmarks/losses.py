"""Memory and time of every loss: python -m benchmarks.losses [--out FILE].

For each loss, strategy, batch and device count: bytes of temporaries of the compiled
forward and backward pass on one device, how they grow with the batch, and, for batches
up to --time, the median and spread of its time. The runs of one batch are interleaved,
so that a busy minute of the machine hits all of them. Devices are parts of one CPU
unless JAX_PLATFORMS says otherwise; their times say what the extra arithmetic costs,
not what a network does.

  python -m benchmarks.losses --time 0 --batch 4096 32768     only compiles: memory
  python -m benchmarks.losses --aot v5e:16x16 --dim 768 --batch 32768 1048576
                          for TPUs that nobody has; needs requirements-aot.txt
"""

import argparse
from collections.abc import Callable, Sequence
import json
import math
import os
import pathlib
import statistics
import sys
import time
from typing import Any

DEVICES = 8
if __name__ == "__main__" and "jax" not in sys.modules:
  # Before jax is imported: the device count cannot change afterwards.
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  flag = f"--xla_force_host_platform_device_count={DEVICES}"
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
  if "--aot" in sys.argv:
    from tools import topology

    topology.prepare()

import jax  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from benchmarks import loss_inputs, turns  # noqa: E402
from model.types import BATCH_AXES, MESH_AXES  # noqa: E402
from training import environment  # noqa: E402

STRATEGIES = ("dense", "tiled", "ring")
Row = dict[str, Any]


def mesh_of(devices: Sequence[Any]) -> jax.sharding.Mesh:
  """Returns a mesh that splits the batch over the devices."""
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  shape = (len(devices), 1, 1, 1)
  return jax.make_mesh(shape, MESH_AXES, axis_types=auto, devices=devices)


def compiled(loss: Any, b: int, d: int, mesh: jax.sharding.Mesh) -> Any:
  """Returns the compiled forward and backward pass of a loss: (params, z, batch)."""
  split = jax.NamedSharding(mesh, P(BATCH_AXES))
  with jax.set_mesh(mesh):
    z, batch = loss_inputs.abstract(loss, b, d, split)
    # The key is made in the trace too: a mesh of described devices can run nothing.
    params = jax.eval_shape(lambda: loss.init(jax.random.key(0)))
    step = jax.jit(
      jax.value_and_grad(lambda p, z, batch: loss(p, z, batch)[0], argnums=(0, 1)),
      out_shardings=(None, (None, split)),
    )
    return step.lower(params, z, batch).compile()


def runner(loss: Any, step: Any, b: int, d: int, mesh: jax.sharding.Mesh) -> Callable:
  """Returns a function that runs a compiled pass once."""
  split = jax.NamedSharding(mesh, P(BATCH_AXES))
  z = loss_inputs.embeddings(loss, b, d)
  z, batch = jax.device_put((z, loss_inputs.batch_of(loss, b)), split)
  params = loss.init(jax.random.key(0))
  return lambda: jax.block_until_ready(step(params, z, batch))


def of_batch(
  name: str, b: int, mesh: jax.sharding.Mesh, args: argparse.Namespace
) -> list[Row]:
  """Returns a row per strategy of a loss, at one batch and on one mesh."""
  rows, runs = [], {}
  has = loss_inputs.has_strategies(name)
  # Without strategies it is what the name says, or it needs [b, b].
  for strategy in args.strategies if has else ("-",):
    options = dict(strategy=strategy, tile=args.tile) if has else {}
    loss = loss_inputs.build(name, args.dim, **options)
    row: Row = dict(loss=name, strategy=strategy, devices=mesh.size, batch=b)
    rows.append(row)
    try:
      step = compiled(loss, b, args.dim, mesh)
    except jax.errors.JaxRuntimeError as e:
      if "RESOURCE_EXHAUSTED" not in str(e):
        raise
      row["fits"] = False
      continue
    row["temp_bytes"] = step.memory_analysis().temp_size_in_bytes
    if b <= args.time:
      runs[strategy] = runner(loss, step, b, args.dim, mesh)
  times: dict[str, list[float]] = {s: [] for s in runs}
  for i in range(args.repeats + 1 if runs else 0):
    for s, run in runs.items():
      start = time.perf_counter()
      run()
      if i:  # the first round warms up
        times[s].append(1e3 * (time.perf_counter() - start))
  for row in rows:
    if took := times.get(row["strategy"]):
      row["ms"] = [round(f(took), 2) for f in (statistics.median, min, max)]
  return rows


def measure(args: argparse.Namespace, meshes: Sequence[jax.sharding.Mesh]) -> list[Row]:
  """Returns the rows of all losses; prints them as they come."""
  rows = []
  for name in args.losses or loss_inputs.names():
    for mesh in meshes:
      before: dict[str, Row] = {}
      for b in args.batch:
        for row in of_batch(name, b, mesh, args):
          last = before.get(row["strategy"])
          if last and "temp_bytes" in row and "temp_bytes" in last:
            row["slope"] = slope(last, row)
          before[row["strategy"]] = row
          rows.append(row)
          print(line(row), flush=True)
  return rows


def slope(a: Row, b: Row) -> float:
  """Returns p, where the temporaries grow as batch^p between two rows."""
  grown = math.log(max(b["temp_bytes"], 1) / max(a["temp_bytes"], 1))
  return round(grown / math.log(b["batch"] / a["batch"]), 2)


def line(row: Row) -> str:
  """Returns a row as text."""
  head = f"{row['loss']:20} {row['strategy']:6} {row['devices']:4} x {row['batch']:8}"
  if not row.get("fits", True):
    return f"{head}  does not fit"
  text = f"{head}  temp {row['temp_bytes'] / 2**20:10.2f} MiB"
  if "slope" in row:
    text += f"  ~ batch^{row['slope']:.2f}"
  if "ms" in row:
    median, low, high = row["ms"]
    text += f"  {median:9.2f} ms ({low:.2f} to {high:.2f})"
  return text


def table(reports: Sequence[dict[str, Any]]) -> str:
  """Returns markdown: a row per loss and number of devices, a column per strategy.

  A cell is MiB of temporaries at the largest batch, and how they grew from the one
  before it.
  """
  rows = [row for report in reports for row in report["results"]]
  largest = max(row["batch"] for row in rows)
  cells: dict[tuple, dict[str, str]] = {}
  for row in (row for row in rows if row["batch"] == largest):
    key = row["loss"], row["devices"], row["batch"]
    cell = "does not fit"
    if row.get("fits", True):
      cell = f"{row['temp_bytes'] / 2**20:,.1f}"
      cell += f", b^{row['slope']:.1f}" if "slope" in row else ""
    cells.setdefault(key, {})[row["strategy"]] = cell
  columns = [c for c in (*STRATEGIES, "-") if any(c in r for r in cells.values())]
  names = ["no strategies" if c == "-" else c for c in columns]
  lines = [["loss", "devices", "batch", *names], ["---"] * (3 + len(columns))]
  for (name, devices, b), found in cells.items():
    lines.append([name, str(devices), f"{b:,}", *(found.get(c, "") for c in columns)])
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command line."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.losses")
  parser.add_argument("--out", help="JSON file to write")
  parser.add_argument("--losses", nargs="+", default=[], help="default: all")
  parser.add_argument(
    "--strategies", nargs="+", default=list(STRATEGIES), choices=STRATEGIES
  )
  parser.add_argument("--batch", type=int, nargs="+", default=[1024, 4096])
  parser.add_argument("--dim", type=int, default=256)
  parser.add_argument("--tile", type=int, help="columns at a time; default: the loss's")
  parser.add_argument("--devices", type=int, nargs="+", default=[1, DEVICES])
  parser.add_argument("--time", type=int, default=1024, help="largest batch to run")
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--table", nargs="+", metavar="FILE", help="prints such files")
  parser.add_argument("--aot", metavar="TOPOLOGY", help="compile for it; runs nothing")
  return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
  """Measures, prints, and writes JSON if asked to."""
  args = arguments(argv)
  if args.table:
    print(table([json.loads(pathlib.Path(f).read_text()) for f in args.table]))
    return
  if args.aot:
    from tools import topology

    args.time = 0
    described = topology.devices(args.aot)
    meshes = [mesh_of(described)]
    device = f"{len(described)} x {described[0].device_kind}, described"
  else:
    meshes = [mesh_of(jax.devices()[:n]) for n in args.devices]
    device = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
  rows = measure(args, meshes)
  told = ("dim", "tile", "repeats", "time")
  report = dict(
    command=turns.command("benchmarks.losses", argv),
    device=device,
    cores=os.cpu_count(),
    xla_flags=os.environ.get("XLA_FLAGS", ""),
    versions=environment.describe()["versions"],
    **{k: getattr(args, k) for k in told},
    results=rows,
  )
  turns.write(args.out, report)


if __name__ == "__main__":
  main()
