"""Memory and time of the losses' reductions: python -m benchmarks.losses [--out FILE].

For each loss, strategy, batch and device count: bytes of temporaries of the compiled
forward and backward pass on one device, and the median and spread of its time. The runs
of one batch are interleaved, so that a busy minute of the machine hits all of them.
Devices are parts of one CPU unless JAX_PLATFORMS says otherwise; their times say what
the extra arithmetic costs, not what a network does.
"""

import argparse
from collections.abc import Callable
import json
import os
import pathlib
import platform
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

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402
import jaxlib  # noqa: E402

from model import catalogue  # noqa: E402
from model.types import BATCH_AXES, MESH_AXES  # noqa: E402

LOSSES = ("infonce", "siglip")
STRATEGIES = ("dense", "tiled", "ring")


def mesh_of(devices: int) -> jax.sharding.Mesh:
  """Returns a mesh that splits the batch over the first `devices` devices."""
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  shape = (devices, 1, 1, 1)
  return jax.make_mesh(
    shape, MESH_AXES, axis_types=auto, devices=jax.devices()[:devices]
  )


def prepare(
  name: str, strategy: str, b: int, d: int, tile: int, devices: int
) -> tuple[Callable[[], Any], int]:
  """Compiles one forward and backward pass.

  Returns:
    A function that runs it once, and the bytes of its temporaries on one device.
  """
  options = {"strategy": strategy, "tile": tile}
  loss = catalogue.load("model.losses", name, "Loss", options)
  mesh = mesh_of(devices)
  with jax.set_mesh(mesh):
    split = jax.NamedSharding(mesh, P(BATCH_AXES))
    params = loss.init(jax.random.key(0))
    keys = jax.random.split(jax.random.key(1), 2)
    z = {}
    for m, key in zip(("image", "text"), keys):
      x = jax.random.normal(key, (b, d), jnp.float32)
      x = x / jnp.linalg.norm(x, axis=-1, keepdims=True)
      z[m] = jax.device_put(x, split)
    step = jax.jit(
      jax.value_and_grad(lambda p, z: loss(p, z, {})[0], argnums=(0, 1)),
      out_shardings=(None, (None, split)),
    )
    compiled = step.lower(params, z).compile()
  run = lambda: jax.block_until_ready(compiled(params, z))  # noqa: E731
  memory = compiled.memory_analysis()
  return run, memory.temp_size_in_bytes if memory else 0


def measure(
  batches: tuple[int, ...], d: int, tile: int, counts: tuple[int, ...], repeats: int
) -> list[dict[str, Any]]:
  """Returns one row of results per loss, strategy, batch and device count."""
  rows = []
  for name in LOSSES:
    for devices in counts:
      for b in batches:
        runs = {s: prepare(name, s, b, d, tile, devices) for s in STRATEGIES}
        times: dict[str, list[float]] = {s: [] for s in STRATEGIES}
        for i in range(repeats + 1):
          for s, (run, _) in runs.items():
            start = time.perf_counter()
            run()
            if i:  # the first round warms up
              times[s].append(1e3 * (time.perf_counter() - start))
        for s, (_, memory) in runs.items():
          row = dict(loss=name, strategy=s, devices=devices, batch=b)
          row |= dict(temp_bytes_per_device=memory)
          row |= dict(ms_median=round(statistics.median(times[s]), 3))
          row |= dict(ms_min=round(min(times[s]), 3), ms_max=round(max(times[s]), 3))
          rows.append(row)
          print(
            f"{name:8} {s:6} devices {devices} batch {b:6} "
            f"temp {memory / 2**20:9.2f} MiB  {row['ms_median']:9.2f} ms "
            f"({row['ms_min']:.2f} to {row['ms_max']:.2f})",
            flush=True,
          )
  return rows


def main(argv: list[str] | None = None) -> None:
  """Measures, prints, and writes JSON if asked to."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.losses")
  parser.add_argument("--out", help="JSON file to write")
  parser.add_argument("--batch", type=int, nargs="+", default=[1024, 2048, 4096])
  parser.add_argument("--dim", type=int, default=256)
  parser.add_argument("--tile", type=int, default=512)
  parser.add_argument("--devices", type=int, nargs="+", default=[1, DEVICES])
  parser.add_argument("--repeats", type=int, default=5)
  args = parser.parse_args(argv)
  rows = measure(
    tuple(args.batch), args.dim, args.tile, tuple(args.devices), args.repeats
  )
  if args.out:
    words = sys.argv[1:] if argv is None else argv
    report = {
      "command": " ".join(["python -m benchmarks.losses", *words]),
      "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
      "cores": os.cpu_count(),
      "versions": {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
      },
      "dim": args.dim,
      "tile": args.tile,
      "repeats": args.repeats,
      "results": rows,
    }
    path = pathlib.Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
  main()
