"""Where the time of a dense CLIP's train step goes on a GPU, kernel by kernel.

python -m benchmarks.kernels --batch 512 --out benchmarks/results/kernels_gpu.json

The step is that of benchmarks.step. A few of them are traced by `jax.profiler`, and
what ran on the device is added up: products of matrices, attention, and the rest by
what the program calls it. A trace of a few steps runs a little faster than training
does: the card is not yet as warm.
"""

import argparse
from collections.abc import Iterable, Mapping
import pathlib
import re
import tempfile
from typing import Any, NamedTuple

import jax

from benchmarks import device, step, turns
from benchmarks.contenders import ours

KINDS = {
  "attention": r"cudnn|sdpa|fmha|flash|attention",
  "products": r"nvjet|gemm|cutlass|cublas|xmma|splitK",
}
OTHER = "all else"
NAMED = 25  # kernels of the report
SHORT = 7_000  # ns: a kernel that takes as long to start as to run


class Ran(NamedTuple):
  """A kernel that ran: its name, how long, and when it began, ns."""

  name: str
  nanoseconds: float
  start: float


def kind(name: str) -> str:
  """Returns which of KINDS a kernel is, by its name."""
  return next((k for k, p in KINDS.items() if re.search(p, name)), OTHER)


def traced(run: device.Step, steps: int) -> list[Ran]:
  """Returns the kernels of some steps, in the order that they began."""
  run()()
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      for _ in range(steps):
        wait = run()
      wait()
    (path,) = pathlib.Path(folder).rglob("*.xplane.pb")
    data = jax.profiler.ProfileData.from_file(str(path))
    return [
      Ran(event.name, event.duration_ns, event.start_ns)
      for plane in data.planes
      if plane.name.startswith("/device:GPU")
      for line in plane.lines
      if line.name.startswith("Stream")
      for event in line.events
    ]


def summary(kernels: Iterable[Ran], steps: int, text: str) -> dict[str, Any]:
  """Returns milliseconds and numbers of kernels of a step, by kind and by name.

  Args:
    kernels: of all steps.
    steps: how many.
    text: of the compiled program, which says what a fusion is for.
  """
  kernels = list(kernels)
  kinds: dict[str, list[float]] = {}
  names: dict[str, list[float]] = {}
  for name, ns, _ in kernels:
    kinds.setdefault(kind(name), []).append(ns)
    names.setdefault(name, []).append(ns)
  total = sum(k.nanoseconds for k in kernels)
  span = max(k.start + k.nanoseconds for k in kernels) - min(k.start for k in kernels)
  short = [k.nanoseconds for k in kernels if k.nanoseconds < SHORT]
  purposes = purpose(text)
  largest = sorted(names.items(), key=lambda item: -sum(item[1]))[:NAMED]
  return dict(
    milliseconds=round(total / steps / 1e6, 3),
    idle=round((span - total) / steps / 1e6, 3),
    kinds={k: _row(v, steps) for k, v in sorted(kinds.items())},
    short=_row(short, steps),
    kernels=[
      dict(name=n[:80], kind=kind(n), **_row(v, steps), of=purposes.get(n, ""))
      for n, v in largest
    ],
  )


def _row(ns: list[float], steps: int) -> dict[str, float]:
  return dict(milliseconds=round(sum(ns) / steps / 1e6, 3), kernels=len(ns) / steps)


def purpose(text: str) -> Mapping[str, str]:
  """Returns kernel -> the end of its operation's JAX name, from a program's text."""
  found = re.findall(r'%([\w.\-]+) = [^\n]*op_name="([^"]*)"', text)
  # Kernels are named as their instruction, without what C forbids in names.
  return {re.sub(r"[.\-]", "_", name): op[-80:] for name, op in found}


def main(argv: list[str] | None = None) -> None:
  """Measures, prints, and writes JSON if asked to."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels")
  parser.add_argument("--out", help="JSON file to write")
  parser.add_argument("--size", choices=step.SHAPES, default="B/16")
  parser.add_argument("--batch", type=int, default=256)
  parser.add_argument("--steps", type=int, default=3)
  parser.add_argument("--set", nargs="*", default=[], help="our config: key=value")
  args = parser.parse_args(argv)
  if jax.default_backend() != "gpu":
    raise SystemExit("benchmarks.kernels reads what ran on a GPU, and there is none")
  overrides = [*ours.OVERRIDES["gpu"], *args.set]
  shape = step.COMMON | step.SHAPES[args.size]
  settings = dict(shape=shape, batch=args.batch, dtype="bfloat16", overrides=overrides)
  config = ours.config_of(settings)
  run = device.Step(config, device.batch_of(config))
  found = summary(traced(run, args.steps), args.steps, run.text())
  for name, row in found["kinds"].items():
    print(f"{row['milliseconds']:8.2f} ms {row['kernels']:6.0f} x {name}")
  print(f"{found['idle']:8.2f} ms idle between them")
  for row in found["kernels"]:
    print(f"{row['milliseconds']:8.2f} ms {row['kernels']:6.0f} x {row['name'][:60]}")
  report = dict(
    command=turns.command("benchmarks.kernels", argv),
    **device.describe(),
    settings=dict(size=args.size, batch=args.batch, overrides=overrides),
    steps=args.steps,
    **found,
  )
  turns.write(args.out, report)


if __name__ == "__main__":
  main()
