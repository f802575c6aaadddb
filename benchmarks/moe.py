"""Time of a LIMoE's train step against its dense twin's, for each dispatch.

python -m benchmarks.moe --out benchmarks/results/moe_cpu.json
python -m benchmarks.moe --out benchmarks/results/moe_gpu.json  # where there is one

The twin has the same trunk without experts: with k = 1 a token meets one MLP in both,
so that the active FLOPs are equal but for the router's. The sparse step does more:
empty slots, the router, sorting and moving, the auxiliary losses, and the update of
parameters that only some tokens use. All steps are forward, backward and AdamW, as
training runs them, in one process and in turns. A dispatch that the device lacks is not
timed: the reason is in the report, under "refused".
"""

import argparse
from collections.abc import Callable
import functools
import os
from typing import Any

import jax
from ml_collections import ConfigDict

from benchmarks import device, turns
from benchmarks.contenders import ours
from configs import base, sizes, web_pairs
from model.moe.config import DISPATCHES

DENSE = "dense"
ARMS = (DENSE, *DISPATCHES)
# By platform: what to run unless told otherwise. `steps` is one turn.
DEFAULTS: dict[str, dict[str, Any]] = {
  "cpu": dict(size="small", batch=32, dtype="float32", steps=1, ceiling=1024),
  "gpu": dict(size="B/16", batch=256, dtype="bfloat16", steps=10, ceiling=8192),
}
# What each config is told besides. Kernels of our own have not been timed here.
OVERRIDES = {
  "cpu": (),
  "gpu": ("model.trunk.attention=cudnn", "model.remat=activations"),
}
SIZES = ("tiny", "small", "S/16", "B/16", "L/16")


def config_of(
  size: str, arm: str, *, batch: int, dtype: str, experts: int, group: int
) -> ConfigDict:
  """Returns the config of an arm: LIMoE's recipes at another size, or their twin."""
  c = base.get_config()
  c.batch_size = batch
  c.model.dtype = dtype
  c.model.modalities.image = base.modality(size=(224, 224, 3), patch=(16, 16))
  c.model.modalities.text = base.modality(stem="tokens", vocab=32_000, length=16)
  if size == "tiny":
    c.model.trunk.update(dict(width=16, depth=2, heads=2, mlp=64))
    c.model.modalities.image.update(dict(size=(16, 16, 3), patch=(8, 8)))
    c.model.modalities.text.update(dict(vocab=32, length=6))
  elif size == "small":
    # One dense block and one sparse one: the recipes' proportion, and soon compiled.
    c.model.trunk.update(dict(width=384, depth=2, heads=6, mlp=1536))
    c.model.modalities.image.size = (128, 128, 3)
    c.model.modalities.text.vocab = 4096
  else:
    sizes.set_trunk(c.model.trunk, size.partition("/")[0])
  c.model.embed_dim = c.model.trunk.width
  web_pairs.set_limoe(c, experts=experts)
  c.model.moe.group = group
  if arm == DENSE:
    c.model.moe.every = 0
  else:
    c.model.moe.dispatch = arm
  c.optimizer.update(dict(warmup=0, schedule="constant"))
  return c


def prepare(
  config_for: Callable[[str], ConfigDict], arms: tuple[str, ...]
) -> tuple[dict[str, device.Step], dict[str, str]]:
  """Returns the compiled steps of the arms, and why others have none."""
  steps, refused = {}, {}
  batch = device.batch_of(config_for(DENSE))
  for arm in arms:
    try:
      steps[arm] = device.Step(config_for(arm), batch)
    except ValueError as e:
      refused[arm] = str(e)
    print(f"{arm}: {refused.get(arm) or steps[arm].facts}", flush=True)
  return steps, refused


def measure(
  steps: dict[str, device.Step], args: argparse.Namespace, ceiling: float
) -> dict[str, dict[str, Any]]:
  """Returns arm -> facts, what a step took, and its ratio to the dense twin's."""
  take = {
    arm: functools.partial(turns.clocked, s, args.steps) for arm, s in steps.items()
  }
  times = turns.interleave(take, args.rounds)
  about = device.describe()
  rows = {}
  for arm, step in steps.items():
    rows[arm] = turns.rated(step.facts, times[arm], args.batch, about, ceiling)
    rows[arm]["over_dense"] = turns.ratios(times[arm], times[DENSE])
    rows[arm]["loss"] = round(float(step.metrics["loss"]), 4)
  return rows


def arguments(argv: list[str] | None) -> argparse.Namespace:
  """Parses the command line; what is not given depends on the platform."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.moe")
  parser.add_argument("--out", help="JSON file to write")
  parser.add_argument("--size", choices=SIZES)
  parser.add_argument("--batch", type=int)
  parser.add_argument("--dtype", choices=("float32", "bfloat16"))
  parser.add_argument("--experts", type=int, default=8)
  parser.add_argument("--group", type=int, default=8)
  parser.add_argument("--threads", type=int, default=0, help="cores to use; 0: all")
  parser.add_argument("--steps", type=int, help="steps of one turn")
  parser.add_argument("--ceiling", type=int, help="side of the ceiling's matrices")
  parser.add_argument("--rounds", type=int, default=11)
  parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
  parser.add_argument("--set", nargs="*", default=[], help="every config: key=value")
  args = parser.parse_args(argv)
  turns.pin(args.threads)
  where = "cpu" if jax.default_backend() == "cpu" else "gpu"
  for key, value in DEFAULTS[where].items():
    if getattr(args, key) is None:
      setattr(args, key, value)
  args.overrides = [*OVERRIDES[where], *args.set]
  return args


def main(argv: list[str] | None = None) -> None:
  """Measures, prints, and writes JSON if asked to."""
  args = arguments(argv)

  def config_for(arm: str) -> ConfigDict:
    options = dict(experts=args.experts, group=args.group)
    c = config_of(args.size, arm, batch=args.batch, dtype=args.dtype, **options)
    for change in args.overrides:
      ours.set_key(c, change)
    return c

  before, about = turns.load(), device.describe()
  arms = tuple(dict.fromkeys((DENSE, *args.arms)))  # the base of the ratios
  steps, refused = prepare(config_for, arms)
  ceiling = device.matmul_flops(args.dtype, args.ceiling)
  rows = measure(steps, args, ceiling)
  for arm, r in rows.items():
    ratio = r["over_dense"]["cpu_seconds" if about["cores"] else "seconds"]
    print(
      f"{turns.line(arm, r)}, {ratio['median']:.2f}x dense "
      f"({ratio['q1']:.2f} to {ratio['q3']:.2f})"
    )
  report = dict(
    command=turns.command("benchmarks.moe", argv),
    **about,
    matmul_tflops=round(ceiling / 1e12, 4),
    settings={k: v for k, v in vars(args).items() if k != "out"},
    load_average=dict(before=before, after=turns.load()),
    results=rows,
    refused=refused,
    malloc=os.environ.get("GLIBC_TUNABLES", ""),
  )
  turns.write(args.out, report)


if __name__ == "__main__":
  main()
