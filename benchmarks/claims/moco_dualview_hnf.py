"""MoCo with both views as anchors and hard negatives only, against MoCo v2."""

import functools
from typing import Any

import numpy as np

from benchmarks.claims.shared import lab, plot, simclr
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement

ARMS = {
  "moco": "one view is the query, the other the key",
  "dual": "each view is query and key, and each key an anchor, too",
  "hard": "as moco, with the 64 keys most similar to the query as negatives",
  "both": "dual and hard",
  "skip": "both, without the 8 most similar keys",
}
OWN: dict[str, dict[str, Any]] = {
  "moco": dict(symmetric=False),
  "dual": dict(key_anchor=1.0),
  "hard": dict(symmetric=False, hard=64),
  "both": dict(key_anchor=1.0, hard=64),
  "skip": dict(key_anchor=1.0, hard=64, skip=8),
}
COMMON: dict[str, Any] = dict(symmetric=True, key_anchor=0.0, hard=0, skip=0)
GRID = dict(lr=(1e-3, 2e-3))
MERIT = ("knn",)
TUNED: dict[str, dict[str, Any]] = {
  "moco": {"lr": 0.001},
  "dual": {"lr": 0.002},
  "hard": {"lr": 0.001},
  "both": {"lr": 0.002},
  "skip": {"lr": 0.002},
}
TRIED: tuple[str, ...] = (
  "moco: 0.001: 0.573, 0.002: 0.538",
  "dual: 0.001: 0.586, 0.002: 0.595",
  "hard: 0.001: 0.662, 0.002: 0.614",
  "both: 0.001: 0.530, 0.002: 0.531",
  "skip: 0.001: 0.528, 0.002: 0.531",
)


def settings(arm: str, seed: int, **options: Any) -> lab.Recipe:
  """Returns the recipe of an arm."""
  queue: dict[str, Any] = dict(name="moco", queue=512, in_batch=False, negatives="ids")
  own = dict(pairs=simclr.PAIRS, temperature=0.2)
  recipe = simclr.recipe(
    seed, (), batch=16, epochs=20, ema=0.99, **(TUNED.get(arm, {}) | options)
  )
  return recipe | dict(objective=queue | own | COMMON | OWN[arm])


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains, and probes the features."""
  del workdir
  trained, split = simclr.train(recipe, id=np.arange(simclr.ROWS, dtype=np.int32))
  loss = plot.thin(trained.history["loss"])
  return Measured(simclr.probed(trained, split), {"loss": loss})


def _more(arm: str, minus: str) -> Rule:
  return Rule(metric="knn", arm=arm, minus=minus, at_least=0.0)


STATEMENTS = (
  Statement(
    name="dual view",
    text="Both views as anchors gain over one, in as many steps",
    rules=(_more("dual", "moco"),),
  ),
  Statement(
    name="hard negatives",
    text="The most similar keys alone do no worse than all, within a point",
    rules=(Rule(metric="knn", arm="hard", minus="moco", at_least=-0.01),),
  ),
  Statement(
    name="whole method",
    text="Both together gain over MoCo",
    rules=(_more("both", "moco"),),
  ),
  Statement(
    name="skip",
    text="To leave out the very first of them, often of the same class, helps",
    rules=(_more("skip", "both"),),
  ),
)

CLAIM = Claim(
  title="Dual views and hard negatives for MoCo",
  source="arXiv 2501.16360",
  about=(
    f"{simclr.ABOUT} 20 epochs of batches of 16, a queue of 512 keys, m = 0.99, "
    "temperature 0.2. Of ten classes a tenth of the queue is the query's own."
  ),
  legend=(
    "5 nearest neighbours and a linear probe, accuracy on the test digits. Arms of "
    "both views take twice the passes of a step."
  ),
  arms=ARMS,
  seeds=(0, 1, 2),
  settings=settings,
  varies=(
    "lr",
    "objective.hard",
    "objective.key_anchor",
    "objective.skip",
    "objective.symmetric",
  ),
  measure=measure,
  statements=STATEMENTS,
  columns=(("knn", "5-NN"), ("linear", "linear probe")),
  draw=functools.partial(
    plot.draw, panels=(("knn", "5 nearest neighbours"), ("linear", "linear probe"))
  ),
  choice=lab.choice(GRID, MERIT, TRIED),
)
