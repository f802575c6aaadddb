"""DCL's claim: without the positive in the denominator small batches learn more."""

import functools

from benchmarks.claims.shared import lab, plot, simclr
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement

ARMS = {
  "infonce": "InfoNCE across the two views",
  "dcl": "DCL: the same without the positive in the denominator",
  "dclw": "DCLW: hard positives weigh more, sigma 0.5",
}
BATCHES = (8, 256)
GRID = dict(temperature=(0.1, 0.2))
MERIT = ("knn_8", "knn_256")
TUNED: dict[str, dict[str, float]] = {
  "infonce": dict(temperature=0.2),
  "dcl": dict(temperature=0.2),
  "dclw": dict(temperature=0.2),
}
TRIED: tuple[str, ...] = (
  "infonce: 0.1: 0.680, 0.2: 0.701",
  "dcl: 0.1: 0.686, 0.2: 0.704",
  "dclw: 0.1: 0.665, 0.2: 0.672",
)


def settings(arm: str, seed: int, **options: float) -> lab.Recipe:
  """Returns the recipe of an arm, of the smallest batch."""
  own = dict(pairs=simclr.PAIRS, **(TUNED.get(arm, {}) | options))
  losses = {
    # DCL of weight 0 logs q, the share of DCL's gradient that InfoNCE keeps.
    "infonce": (("infonce", 1.0, own | dict(learned=False)), ("dcl", 0.0, own)),
    "dcl": (("dcl", 1.0, own),),
    "dclw": (("dcl", 1.0, own | dict(sigma=0.5)),),
  }
  return simclr.recipe(seed, losses[arm], batch=BATCHES[0], batches=BATCHES)


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains with each batch size for as many epochs; probes and reads q."""
  del workdir
  figures, arrays = {}, {}
  for batch in recipe["batches"]:
    trained, split = simclr.train(simclr.resized(recipe, batch))
    for name, value in simclr.probed(trained, split).items():
      figures[f"{name}_{batch}"] = value
    q = trained.history["dcl/coupling_image_1_to_image_2"]
    figures[f"q_{batch}"] = float(q[-len(q) // 5 :].mean())
    arrays[f"q_{batch}"] = plot.thin(q)
  figures["cost"] = figures[f"knn_{BATCHES[1]}"] - figures[f"knn_{BATCHES[0]}"]
  return Measured(figures, arrays)


STATEMENTS = (
  Statement(
    name="coupling",
    text="With few negatives InfoNCE keeps less of the gradient: q is lower by a fifth "
    "at batch 8 than at 256, where nearly all is left",
    rules=(
      Rule(metric="q_8", arm="infonce", at_most=0.8),
      Rule(metric="q_256", arm="infonce", at_least=0.95),
    ),
  ),
  Statement(
    name="small batch",
    text="At batch 8 DCL learns more than InfoNCE in as many epochs",
    rules=(Rule(metric="knn_8", arm="dcl", minus="infonce", at_least=0.0),),
  ),
  Statement(
    name="large batch",
    text="At batch 256 the two are level, within two points",
    rules=(
      Rule(metric="knn_256", arm="dcl", minus="infonce", at_least=-0.02),
      Rule(metric="knn_256", arm="dcl", minus="infonce", at_most=0.02),
    ),
  ),
  Statement(
    name="robustness",
    text="From batch 256 down to 8 DCL loses less than InfoNCE",
    rules=(Rule(metric="cost", arm="dcl", minus="infonce", at_most=0.0),),
  ),
  Statement(
    name="weights",
    text="The weights of DCLW help further at batch 8",
    rules=(Rule(metric="knn_8", arm="dclw", minus="dcl", at_least=0.0),),
  ),
)

CLAIM = Claim(
  title="DCL on cluttered digits",
  source="arXiv 2110.06848",
  about=simclr.ABOUT + " Batches of 8 and 256, 40 epochs each.",
  legend=(
    "kNN: accuracy of 5 nearest neighbours in the features, by batch size. q: share of "
    "DCL's gradient that InfoNCE has, mean of the last fifth of training."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses",),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("knn_8", "kNN, 8"),
    ("knn_256", "kNN, 256"),
    ("linear_8", "linear, 8"),
    ("linear_256", "linear, 256"),
    ("q_8", "q, 8"),
    ("q_256", "q, 256"),
  ),
  draw=functools.partial(
    plot.draw,
    panels=(("knn_8", "kNN, batch 8"), ("knn_256", "kNN, batch 256")),
    curves=(("q_8", "q, batch 8"),),
  ),
  choice=lab.choice(GRID, MERIT, TRIED),
)
