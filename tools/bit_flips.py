"""What finds a flipped bit in a checkpoint: Orbax and TensorStore alone, or digests.

python -m tools.bit_flips --flips 300 --out docs/results/reliability/bit_flips.json

Flips one bit at a time, at seeded places of the files that hold a step's arrays, all
bytes being equally likely, and restores it: either an error comes, or the arrays are
equal to those saved, or they are not and nobody said so.
"""

import argparse
import collections
from collections.abc import Sequence
import hashlib
import json
import pathlib
import sys
import tempfile
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from tools import inspect_checkpoint
from training import checkpoint, environment, integrity
from training.state import TrainState

STEP = 1
SHAPES = {"embedding": (512, 64), "kernel": (128, 128), "bias": (128,)}
OUTCOMES = ("error", "equal", "silently wrong")


def state(seed: int) -> TrainState:
  """Returns a state of random parameters with the moments of Adam."""
  keys = jax.random.split(jax.random.key(seed), 3 * len(SHAPES))
  trees = [
    {name: jax.random.normal(next(each), shape) for name, shape in SHAPES.items()}
    for each in [iter(keys)] * 3
  ]
  rng = jnp.zeros(2, jnp.uint32)
  return TrainState(jnp.int32(STEP), trees[0], tuple(trees[1:]), {}, {}, rng)


def outcome(folder: pathlib.Path, whole: dict[str, bytes]) -> str:
  """Returns which of OUTCOMES restoring without digests has."""
  try:
    found = inspect_checkpoint.read(str(folder))
    arrays = found.arrays(list(found.leaves))
  except Exception:  # of many kinds
    return "error"
  same = whole == {path: x.tobytes() for path, x in arrays.items()}
  return "equal" if same else "silently wrong"


def run(flips: int, seed: int) -> dict[str, Any]:
  """Returns the counts of OUTCOMES, and how many of each kind the digests found."""
  rng = np.random.default_rng(seed)
  with tempfile.TemporaryDirectory() as workdir:
    config = base.get_config().checkpoint
    keeper = checkpoint.Checkpointer(workdir, config)
    keeper.save(STEP, state(seed), {})
    keeper.close()
    folder = pathlib.Path(keeper.path(STEP))
    found = inspect_checkpoint.read(str(folder))
    arrays = found.arrays(list(found.leaves))
    whole = {path: x.tobytes() for path, x in arrays.items()}
    files = sorted(p for p in (folder / "state").rglob("*") if p.is_file())
    ends = np.cumsum([p.stat().st_size for p in files])
    counts: collections.Counter[str] = collections.Counter()
    noticed: collections.Counter[str] = collections.Counter()
    for place in rng.integers(ends[-1], size=flips):
      index = int(np.searchsorted(ends, place, side="right"))
      path, before = files[index], files[index].read_bytes()
      data = bytearray(before)
      data[int(place - ends[index])] ^= 1 << int(rng.integers(8))
      path.write_bytes(data)
      kind = outcome(folder, whole)
      counts[kind] += 1
      noticed[kind] += bool(integrity.damage(folder))
      path.write_bytes(before)
  return {
    "bytes": int(ends[-1]),
    "without_digests": {k: counts[k] for k in OUTCOMES},
    "found_by_digests": {k: noticed[k] for k in OUTCOMES},
  }


def cost() -> float:
  """Returns CPU seconds that the digest of a GB takes."""
  block = np.random.default_rng(0).bytes(1 << 26)
  began = time.process_time()
  for _ in range(4):
    hashlib.sha256(block)
  return (time.process_time() - began) / (4 * len(block)) * 1e9


def rows(result: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns the row of docs/reliability.md."""
  alone, found = result["without_digests"], result["found_by_digests"]
  flips = sum(alone.values())
  return [
    {
      "what": "one bit flipped in the files of a checkpoint's arrays",
      "times": flips,
      "outcome": f"the digests found {sum(found.values())}; without them restoring "
      f"gave an error {alone['error']} times, the right arrays {alone['equal']} times, "
      f"and wrong ones without a word {alone['silently wrong']} times",
    }
  ]


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns 1 if the digests missed a flip."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--flips", type=int, default=300)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", help="a JSON file")
  args = parser.parse_args(argv)
  logging.set_verbosity(logging.FATAL)
  result = run(args.flips, args.seed)
  result |= {"digest_cpu_seconds_per_gb": round(cost(), 2)}
  record = {"rows": rows(result), **result, **environment.describe()}
  print(json.dumps(record, indent=1))
  if args.out:
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")
  return int(sum(result["found_by_digests"].values()) != args.flips)


if __name__ == "__main__":
  sys.exit(main())
