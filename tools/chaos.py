"""Kills a run again and again, and shows that it ends as if nothing had happened.

python -m tools.chaos --mode kill --kills 50 --out docs/results/reliability/chaos.json
python -m tools.chaos --mode corrupt --kills 12

Trains once without disturbance, then once more, disturbed at seeded random moments and
started again each time, by the real train.py in processes of its own. Modes:
  kill     SIGKILL; every other one while a checkpoint is being written
  sigterm  SIGTERM, which must end in a checkpoint and exit status 0
  corrupt  SIGKILL, then bits of the newest checkpoint are flipped, or a file of it cut
           short or deleted: the run must notice and go back to the one before
  full     the disk is full for a while (no file may grow): nothing may end
The final states must be equal bit for bit, the data's included, and so must the losses
of all steps. Counts how much work was done twice. Exit status 1: they are not equal.
"""

import argparse
from collections.abc import Mapping, Sequence
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np

from tools import chaos_lives, inspect_checkpoint
from tools.chaos_lives import Life, Runner
from training import environment

CONFIG = "configs/limoe_emoji.py:runlocal"


def disturb(
  runner: Runner, mode: str, kills: int, spread: int, seed: int, minutes: float
) -> list[Life]:
  """Runs the workdir of `runner` to its end through so many disturbances.

  Args:
    runner: of the run.
    mode: as the command has it.
    kills: how many disturbances.
    spread: they come 0 to this many steps after a start, but for every fourth, which
      comes before the first step.
    seed: of the moments.
    minutes: after which there are no more.

  Returns:
    The lives, of which the last is undisturbed.

  Raises:
    RuntimeError: a life that ended otherwise than it was meant to.
  """
  rng = np.random.default_rng(seed)
  until = time.monotonic() + 60 * minutes
  lives: list[Life] = []
  startup = 5.0  # seconds, until one was seen
  while sum(x.disturbed for x in lives) < kills and time.monotonic() < until:
    count = len(lives)
    early = count % 4 == 3 and mode in ("kill", "corrupt")
    plan = chaos_lives.Plan(
      mode=mode,
      steps=int(rng.integers(spread + 1)),
      seconds=float(rng.uniform(0, startup)) if early else None,
      saving=mode in ("kill", "corrupt") and count % 2 == 0,
      fraction=float(rng.uniform()),
    )
    life = runner.live(plan)
    if life.to_first_step is not None:
      startup = life.to_first_step
    lives.append(life)
    if mode == "corrupt" and life.disturbed:
      life.note = runner.damage(rng)
    print(f"{len(lives):3} {life}", flush=True)
    if life.done:  # sooner than planned: --steps are too few for so many
      return lives
  lives.append(runner.live(None))
  print(f"{len(lives):3} {lives[-1]}", flush=True)
  if not lives[-1].done:
    raise RuntimeError(f"the last life did not reach the end:\n{lives[-1].tail}")
  return lives


def compare(one: pathlib.Path, two: pathlib.Path) -> dict[str, Any]:
  """Returns what of two finished runs is equal: {arrays, losses, differences}."""
  whole, killed = (inspect_checkpoint.read(str(w)) for w in (one, two))
  found = [
    line
    for line in inspect_checkpoint.differences(whole, killed)
    if not line.startswith("config.data/tokenizer")  # its path is in the workdir
  ]
  left, right = (chaos_lives.losses(w) for w in (one, two))
  odd = [s for s in sorted({*left, *right}) if left.get(s) != right.get(s)]
  return {
    "arrays": len(whole.leaves),
    "losses": len(left),
    "differences": found + [f"loss of step {s}" for s in odd],
  }


def summary(lives: Sequence[Life], whole: Life, total: int) -> dict[str, Any]:
  """Returns the figures of a disturbed run.

  Args:
    lives: of the run, in order.
    whole: the one life of the undisturbed run.
    total: steps.
  """
  # Of a life that ended before it restored anything, 0 to 0 is all that is known.
  told = itertools.pairwise(life for life in lives if life.reached)
  redone = [max(0, a.reached - b.started) for a, b in told]
  steps = sum(life.reached - life.started for life in lives)
  stepping = sum(life.stepping for life in lives)
  return {
    "disturbances": sum(life.disturbed for life in lives),
    "lives": len(lives),
    "in_a_save": sum(life.in_a_save for life in lives),
    "before_a_step": sum(life.reached == life.started for life in lives),
    "went_back": sum(life.went_back for life in lives),
    "saves_failed": sum(life.saves_failed for life in lives),
    "steps": total,
    "steps_redone": sum(redone),
    "steps_redone_at_most": max(redone, default=0),
    "seconds_redone": round(sum(redone) * stepping / max(steps, 1), 1),
    # Not known of a run that was there already (--workdir).
    "seconds_whole_run": None if whole.started else round(whole.seconds, 1),
    "seconds_all_lives": round(sum(life.seconds for life in lives), 1),
    "seconds_to_first_step": round(
      float(np.median([x.to_first_step for x in lives if x.to_first_step])), 1
    ),
  }


WHAT = {
  "kill": "kill -9, started again each time; {in_a_save} with a save under way, "
  "{before_a_step} before a step was taken",
  "sigterm": "SIGTERM, started again each time; each life saved and exited with 0",
  "corrupt": "kill -9, then bits of the newest checkpoint flipped, or a file of it cut "
  "or deleted: {damaged} times; the run found {went_back} and went on from the step "
  "before",
  "full": "no room on the disk for a while; {saves_failed} saves failed, in words",
}


def row(result: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the row of docs/reliability.md for what `main` wrote."""
  r = dict(result)
  kind = "equal bit for bit to" if r["equal"] else "NOT equal to"
  return {
    "what": WHAT[r["mode"]].format(**r | {"damaged": len(r["damage"])}),
    "times": r["disturbances"],
    "outcome": f"{r['arrays']} arrays of the last state, the place in the data and the "
    f"losses of {r['losses']} steps are {kind} those of a run left alone: no example "
    f"lost; {r['steps_redone']} steps done twice, at most {r['steps_redone_at_most']} "
    f"a time, with a checkpoint every {r['checkpoint_every']} of {r['steps']}; "
    f"{r['seconds_redone']} s of {r['seconds_all_lives']:.0f} s",
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit status."""
  parser = argparse.ArgumentParser(
    prog="python -m tools.chaos",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--mode", choices=("kill", "sigterm", "corrupt", "full"))
  parser.add_argument("--kills", type=int, default=50, help="disturbances")
  parser.add_argument("--steps", type=int, default=1000, help="of the run")
  parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
  parser.add_argument(
    "--spread", type=int, default=30, help="steps, at most, of a life"
  )
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  parser.add_argument("--config", default=CONFIG, help="a recipe")
  parser.add_argument("--minutes", type=float, default=60, help="then no more of them")
  parser.add_argument("--workdir", help="default: a temporary one")
  parser.add_argument("--out", help="the JSON file to write")
  parser.set_defaults(mode="kill")
  args = parser.parse_args(argv)
  jax.config.update("jax_platforms", "cpu")  # the runs have the accelerator
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(args.workdir or temporary)
    flags = [
      f"--config={args.config}",
      f"--config.total_steps={args.steps}",
      f"--config.checkpoint.every={args.every}",
      "--config.log_every=1",  # each step is known to whoever counts
      "--config.evaluators=()",
      f"--config.checkpoint.retries={args.steps}",  # it is full for as long as it is
    ]
    whole = Runner(folder / "whole", flags, folder / "cache")
    killed = Runner(folder / "killed", flags, folder / "cache")
    begun = time.monotonic()
    first = whole.live(None)
    if not first.done:
      print(f"the undisturbed run failed:\n{first.tail}", file=sys.stderr)
      return 2
    lives = disturb(killed, args.mode, args.kills, args.spread, args.seed, args.minutes)
    found = compare(whole.workdir, killed.workdir)
    result = {
      "mode": args.mode,
      "seed": args.seed,
      "checkpoint_every": args.every,
      **summary(lives, first, args.steps),
      **found,
      "equal": not found["differences"],
      "seconds_altogether": round(time.monotonic() - begun),
      "made": environment.describe() | {"xla_flags": os.environ.get("XLA_FLAGS", "")},
      "damage": [life.note for life in lives if life.note],
    }
  print(json.dumps({k: v for k, v in result.items() if k != "damage"}, indent=1))
  if args.out:
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n")
  return 0 if result["equal"] else 1


if __name__ == "__main__":
  sys.exit(main())
