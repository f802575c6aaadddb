"""Time of a dense CLIP's train step, ours and open_clip's, on one device.

pip install -r requirements-bench.txt
python -m benchmarks.step --out benchmarks/results/step_cpu.json
python -m benchmarks.step --out benchmarks/results/step_gpu.json  # where there is one

Forward, backward and AdamW of both towers and InfoNCE over the batch; the same shapes,
batch, precision and number of cores; the data is on the device already. Each side is a
process of its own (see `turns.Worker`). S/16 in float32 on a CPU, B/16 in bfloat16 on a
GPU; `--set` changes any key of our config, to try things. Without the peer's packages,
only ours is timed.
"""

import argparse
import functools
import importlib.util
import os
import subprocess
import sys
from typing import Any

from benchmarks import turns
from benchmarks.contenders import ours

# (width, depth, heads) of each tower, open_clip's model configs of the same names.
SHAPES: dict[str, dict[str, Any]] = {
  "S/16": dict(embed=384, vision=(384, 12, 6), text=(384, 12, 6)),
  "B/16": dict(embed=512, vision=(768, 12, 12), text=(512, 12, 8)),
  "tiny": dict(
    embed=16, vision=(32, 2, 2), text=(16, 2, 2), image=32, vocab=64, length=8
  ),
}
COMMON = dict(image=224, patch=16, vocab=49_408, length=77)
# Large pages for the large buffers of both, as `make demo` has them; and buffers stay
# with a side that waits. Given back, they come again with small pages where the other
# left no large ones, and that step takes a quarter longer (docs/performance.md).
MALLOC = ":".join(
  f"glibc.malloc.{key}={value}"
  for key, value in dict(
    hugetlb=1, mmap_max=0, arena_max=1, trim_threshold=16 * 2**30
  ).items()
)
OURS, PEER = "ours", "open_clip"
# By platform: what to run unless told otherwise. `steps` is one turn.
DEFAULTS: dict[str, dict[str, Any]] = {
  "cpu": dict(size="S/16", batch=16, dtype="float32", threads=1, steps=1, ceiling=2048),
  "gpu": dict(
    size="B/16", batch=256, dtype="bfloat16", threads=0, steps=10, ceiling=8192
  ),
}


def platform() -> str:
  """Returns "gpu" or "cpu", asking a process that gives the device back."""
  code = "import jax; print(jax.default_backend())"
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True
  )
  return "gpu" if done.stdout.split()[-1] in ("gpu", "cuda", "rocm") else "cpu"


def measure(
  settings: dict[str, Any], names: list[str], rounds: int, steps: int
) -> dict[str, dict[str, Any]]:
  """Returns name -> what a contender says of itself and what its steps took."""
  workers: dict[str, turns.Worker] = {}
  try:
    for name in names:
      workers[name] = turns.Worker(f"benchmarks.contenders.{name}", settings)
      print(f"{name} is ready: {workers[name].facts}", flush=True)
    take = {name: functools.partial(w.turn, steps) for name, w in workers.items()}
    times = turns.interleave(take, rounds)
    rows = {}
    for name, worker in workers.items():
      facts = worker.facts
      ceiling = facts["matmul_tflops"] * 1e12
      rows[name] = turns.rated(facts, times[name], settings["batch"], facts, ceiling)
      rows[name] |= worker.close()
    if len(names) > 1:
      rows[OURS]["over_open_clip"] = turns.ratios(times[OURS], times[PEER])
    return rows
  finally:
    for worker in workers.values():
      worker.kill()


def arguments(argv: list[str] | None) -> argparse.Namespace:
  """Parses the command line; what is not given depends on the platform."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.step")
  parser.add_argument("--out", help="JSON file to write")
  parser.add_argument("--size", choices=SHAPES)
  parser.add_argument("--depth", type=int, help="blocks of each tower, not the size's")
  parser.add_argument("--batch", type=int)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"))
  parser.add_argument("--threads", type=int, help="cores of each side; 0: all")
  parser.add_argument("--steps", type=int, help="steps of one turn")
  parser.add_argument("--ceiling", type=int, help="side of the ceiling's matrices")
  parser.add_argument("--rounds", type=int, default=11)
  parser.add_argument("--set", nargs="*", default=[], help="our config: key=value")
  parser.add_argument("--eager", action="store_true", help="peer without compilation")
  parser.add_argument("--only", choices=(OURS, PEER), help="time one side")
  parser.add_argument("--erf", action="store_true", help="peer: GELU by erf, not tanh")
  args = parser.parse_args(argv)
  where = platform()
  for key, value in DEFAULTS[where].items():
    if getattr(args, key) is None:
      setattr(args, key, value)
  args.overrides = [*ours.OVERRIDES[where], *args.set]
  return args


def main(argv: list[str] | None = None) -> None:
  """Measures, prints, and writes JSON if asked to."""
  args = arguments(argv)
  # A GPU is shared by the two processes: neither may take all of its memory at once.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  os.environ.setdefault("GLIBC_TUNABLES", MALLOC)  # the workers inherit it
  names = [args.only] if args.only else [OURS, PEER]
  if PEER in names and importlib.util.find_spec("open_clip") is None:
    print("open_clip is not installed (requirements-bench.txt): timing only ours")
    names.remove(PEER)
  shape, size = COMMON | SHAPES[args.size], args.size
  if args.depth:
    size = f"{size} of {args.depth} blocks"
    for part in ("vision", "text"):
      width, _, heads = shape[part]
      shape[part] = (width, args.depth, heads)
  settings = dict(
    size=size,
    shape=shape,
    batch=args.batch,
    dtype=args.dtype,
    threads=args.threads,
    ceiling=args.ceiling,
    overrides=args.overrides,
    compile=not args.eager,
    tanh=not args.erf,
  )
  before = turns.load()
  rows = measure(settings, names, args.rounds, args.steps)
  for name, r in rows.items():
    print(turns.line(name, r))
  if len(rows) > 1:
    print(f"ours / open_clip, by rounds: {rows[OURS]['over_open_clip']}")
  report = dict(
    command=turns.command("benchmarks.step", argv),
    settings=settings,
    rounds=args.rounds,
    steps_per_turn=args.steps,
    malloc=os.environ.get("GLIBC_TUNABLES", ""),
    load_average=dict(before=before, after=turns.load()),
    results=rows,
  )
  turns.write(args.out, report)


if __name__ == "__main__":
  main()
