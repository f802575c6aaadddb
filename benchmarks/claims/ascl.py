"""ASCL's claim: soft targets from neighbours help, and do not harm as hard ones."""

import functools
from typing import Any

from benchmarks.claims.shared import lab, plot, simclr
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement
from evaluators import health

ARMS = {
  "infonce": "one target",
  "soft_1": "ASCL: soft targets, the mass of one neighbour",
  "soft_5": "ASCL, the mass of five",
  "top_5": "AHCL: the five nearest, each as sure as its query",
  "hard_5": "the five nearest, each as good as the own pair",
}
GRID = dict(temperature=(0.1, 0.2))
MERIT = ("knn",)
TUNED: dict[str, dict[str, float]] = {
  "infonce": dict(temperature=0.2),
  "soft_1": dict(temperature=0.2),
  "soft_5": dict(temperature=0.2),
  "top_5": dict(temperature=0.2),
  "hard_5": dict(temperature=0.1),
}
TRIED: tuple[str, ...] = (
  "infonce: 0.1: 0.645, 0.2: 0.667",
  "soft_1: 0.1: 0.651, 0.2: 0.658",
  "soft_5: 0.1: 0.643, 0.2: 0.645",
  "top_5: 0.1: 0.640, 0.2: 0.646",
  "hard_5: 0.1: 0.640, 0.2: 0.635",
)


def settings(arm: str, seed: int, **options: float) -> lab.Recipe:
  """Returns the recipe of an arm."""
  kind, _, neighbours = arm.partition("_")
  own: dict[str, Any] = dict(pairs=simclr.PAIRS, **(TUNED.get(arm, {}) | options))
  own |= dict(targets="one" if kind == "infonce" else kind)
  own |= dict(neighbours=int(neighbours or 1))
  return simclr.recipe(seed, (("ascl", 1.0, own),), batch=128)


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains, probes, and reads the confidence and the number of targets."""
  del workdir
  trained, split = simclr.train(recipe)
  z = trained.embed({"image_1": split.test_image})["image_1"]
  figures = simclr.probed(trained, split) | {"uniformity": health.uniformity(z)}
  targets = trained.history["ascl/targets_image_1_to_image_2"]
  arrays = {"targets": plot.thin(targets)}
  figures["targets"] = float(targets[-1])
  sure = trained.history.get("ascl/confidence_image_2")
  if sure is not None:
    figures["confidence"] = float(sure[-1])
    arrays["confidence"] = plot.thin(sure)
  return Measured(figures, arrays)


STATEMENTS = (
  Statement(
    name="gain",
    text="Soft targets learn more than one target",
    rules=(Rule(metric="knn", arm="soft_1", minus="infonce", at_least=0.0),),
  ),
  Statement(
    name="safe",
    text="With too many neighbours soft targets learn more than hard ones",
    rules=(Rule(metric="knn", arm="soft_5", minus="hard_5", at_least=0.0),),
  ),
  Statement(
    name="confidence",
    text="Weighing hard targets by the confidence saves most of what they cost",
    rules=(Rule(metric="knn", arm="top_5", minus="hard_5", at_least=0.0),),
  ),
  Statement(
    name="steady",
    text="Five neighbours cost soft targets no more than two points against one",
    rules=(Rule(metric="knn", arm="soft_5", minus="soft_1", at_least=-0.02),),
  ),
)

CLAIM = Claim(
  title="ASCL on cluttered digits",
  source="arXiv 2207.11163",
  about=simclr.ABOUT
  + " Batches of 128, 40 epochs; neighbours are sought in the batch, among the other "
  "view's embeddings, not in a queue of a momentum encoder as in the paper.",
  legend=(
    "kNN, linear: accuracies of 5 nearest neighbours and of ridge regression in the "
    "features. Targets: how many a row has at the end, its own pair being one. "
    "Confidence: 1 less the entropy of the neighbours over its greatest value."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses",),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("knn", "kNN"),
    ("linear", "linear"),
    ("uniformity", "uniformity"),
    ("targets", "targets"),
    ("confidence", "confidence"),
  ),
  draw=functools.partial(
    plot.draw,
    panels=(("knn", "kNN"), ("linear", "linear probe")),
    curves=(("confidence", "confidence"),),
  ),
  choice=lab.choice(GRID, MERIT, TRIED),
)
