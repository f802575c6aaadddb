"""Kills a process that does nothing but save, and checks what is left each time.

python -m tools.chaos_saves --kills 50 --out docs/results/reliability/chaos_saves.json

`tools.chaos` kills real runs, which take long to start. Here a life is short, so that
many kills fall on every part of a save: the copying, the writing, the digests, the move
and the deletion of older steps. After each the newest step that had been moved into
place must be restored, with the arrays that belong to it.
"""

import argparse
from collections.abc import Sequence
import json
import math
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from configs import base
from training import checkpoint, environment, parameters
from training.state import TrainState

SHAPES = {"embedding": (512, 64), "kernel": (256, 256), "bias": (256,)}
PATIENCE = 600  # seconds
WRONG = 3  # exit status: what was restored is not what was saved


def state(step: int) -> TrainState:
  """Returns the state that belongs to a step: no two share an array."""
  rng = np.random.default_rng(step)
  trees = [
    {k: jnp.asarray(rng.standard_normal(v, np.float32)) for k, v in SHAPES.items()}
    for _ in range(3)
  ]
  key = jnp.asarray([0, step], jnp.uint32)
  return TrainState(jnp.int32(step), trees[0], tuple(trees[1:]), {}, {}, key)


def save_on(workdir: str, pipe: Any) -> None:
  """Restores, checks and reports the newest step, then saves until it is killed."""
  keeper = checkpoint.Checkpointer(workdir, base.get_config().checkpoint, print)
  step = keeper.latest_step() or 0
  if step:
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = state(step)
    got, data = keeper.restore(
      jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), wanted
      )
    )
    same = jax.tree.map(lambda a, b: bool((a == b).all()), got, wanted)
    if not all(jax.tree.leaves(same)) or data != {"next": step}:
      os._exit(WRONG)
  pipe.send(step)
  while True:
    step += 1
    keeper.save(step, state(step), {"next": step})


def run(
  kills: int, seed: int, workdir: str, minutes: float = math.inf
) -> dict[str, Any]:
  """Returns the counts of a number of kills, or of those that `minutes` had room for.

  Raises:
    RuntimeError: a step that was complete was not restored, or not as it was saved.
  """
  rng = np.random.default_rng(seed)
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["tools.chaos_saves"])
  folder = pathlib.Path(workdir) / "checkpoints"
  newest = inside = 0
  each = 1.0  # seconds of a save, until one was seen
  until = time.monotonic() + 60 * minutes
  for kill in range(kills + 1):
    if time.monotonic() > until:
      kills = kill  # one more life, to restore what the last one left
    ours, theirs = context.Pipe()
    process = context.Process(target=save_on, args=(workdir, theirs))
    process.start()
    theirs.close()
    try:
      restored = ours.recv() if ours.poll(PATIENCE) else None
      if restored != newest:
        raise RuntimeError(f"step {newest} was complete, {restored} was restored")
      began, more = time.monotonic(), int(rng.integers(3))
      while (
        kill < kills and max(parameters.steps_in(folder), default=0) < newest + more
      ):
        if not process.is_alive():
          raise EOFError
        time.sleep(0.005)
      if more:
        each = (time.monotonic() - began) / more
      if kill < kills:  # then some time into a save
        time.sleep(float(rng.uniform(0, each)))
    except EOFError as e:
      process.join()
      raise RuntimeError(
        f"after {kill} kills: exit status {process.exitcode} after step {newest}"
      ) from e
    finally:
      process.kill()
      process.join()
    inside += any(folder.glob("*.orbax-checkpoint-tmp")) and kill < kills
    newest = max(parameters.steps_in(folder), default=0)
    if kill == kills:
      break
  return {"kills": kills, "in_a_save": inside, "saved": newest, "seed": seed}


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
  """Returns the row of docs/reliability.md."""
  return [
    {
      "what": "kill -9 of a process that does nothing but save, at random moments; "
      f"{found['in_a_save']} left an unfinished checkpoint",
      "times": found["kills"],
      "outcome": "each time the newest complete step was restored with the arrays and "
      f"the place in the data that belong to it; {found['saved']} steps were saved",
    }
  ]


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--minutes", type=float, default=60, help="then no more of them")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--out", help="a JSON file")
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as workdir:
    found = run(args.kills, args.seed, workdir, args.minutes)
  record = {"rows": rows(found), **found, **environment.describe()}
  print(json.dumps(record, indent=1))
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(record, indent=1) + "\n")
  return 0


if __name__ == "__main__":
  sys.exit(main())
