"""AMCL's claims: several heads, and temperatures that forgive unlike positives."""

import functools
from typing import Any

import numpy as np

from benchmarks.claims.shared import lab, plot, simclr
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement

ARMS = {
  "single": "one head, one fixed temperature: InfoNCE",
  "heads": "four heads, one fixed temperature",
  "adaptive": "one head, temperatures by the pair",
  "amcl": "four heads, temperatures by the pair: AMCL",
  "free": "AMCL without its regulariser",
}
KINDS = {
  "one": dict(shift=1, noise=0.0),
  "five": dict(simclr.STRONG, erase=3),
}
GRID = dict(factor=(1.0, 2.0))  # of the temperature at the start: 0.1, four heads 0.4
MERIT = ("knn_one", "knn_five")
TUNED: dict[str, dict[str, float]] = {
  "single": {"factor": 2.0},
  "heads": {"factor": 2.0},
  "adaptive": {"factor": 1.0},
  "amcl": {"factor": 1.0},
  "free": {"factor": 1.0},
}
TRIED: tuple[str, ...] = (
  "single: 1: 0.455, 2: 0.458",
  "heads: 1: 0.453, 2: 0.461",
  "adaptive: 1: 0.456, 2: 0.447",
  "amcl: 1: 0.458, 2: 0.455",
  "free: 1: 0.457, 2: 0.455",
)


def settings(arm: str, seed: int, **options: float) -> lab.Recipe:
  """Returns the recipe of an arm, with five kinds of views."""
  factor = (dict(factor=1.0) | TUNED.get(arm, {}) | options)["factor"]
  heads = 1 if arm in ("single", "adaptive") else 4
  own: dict[str, Any] = dict(pairs=simclr.PAIRS, heads=heads)
  own |= dict(temperature=0.1 * heads * factor, adaptive=arm not in ("single", "heads"))
  own |= dict(beta=0.1 if arm in ("adaptive", "amcl") else 0.0)
  return simclr.recipe(seed, (("amcl", 1.0, own),), batch=128, views=KINDS["five"])


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains with one and with five kinds of views; probes, and reads temperatures."""
  del workdir
  figures, arrays = {}, {}
  for name, views in KINDS.items():
    prepare = dict(views) | dict(count=recipe["prepare"]["count"])
    trained, split = simclr.train(dict(recipe) | dict(prepare=prepare))
    for probe, value in simclr.probed(trained, split).items():
      figures[f"{probe}_{name}"] = value
    t = trained.history["amcl/temperature_positive_image_1_image_2"]
    figures[f"temperature_{name}"] = float(t[-1])
    arrays[f"temperature_{name}"] = plot.thin(t)
    own = trained.params["objective"].get("amcl")
    if own:
      # Temperatures are monotone in the similarity: all that decides is the slope.
      figures[f"forgiving_{name}"] = float((np.asarray(own["slope"])[0] < 0).mean())
  figures["favour"] = figures["knn_five"] - figures["knn_one"]
  return Measured(figures, arrays)


STATEMENTS = (
  Statement(
    name="gain",
    text="With five kinds of views AMCL learns more than InfoNCE",
    rules=(Rule(metric="knn_five", arm="amcl", minus="single", at_least=0.0),),
  ),
  Statement(
    name="where",
    text="The gain is greater than with one kind",
    rules=(Rule(metric="favour", arm="amcl", minus="single", at_least=0.0),),
  ),
  Statement(
    name="parts",
    text="Heads and temperatures help each by itself",
    rules=(
      Rule(metric="knn_five", arm="heads", minus="single", at_least=0.0),
      Rule(metric="knn_five", arm="adaptive", minus="single", at_least=0.0),
    ),
  ),
  Statement(
    name="forgiving",
    text="Positives that look unlike get a higher temperature, in most heads",
    rules=(Rule(metric="forgiving_five", arm="amcl", at_least=0.5),),
  ),
  Statement(
    name="regulariser",
    text="Without the regulariser the temperatures of positives drift up, by half at "
    "least of the range to their bound, 2",
    rules=(
      Rule(metric="temperature_five", arm="free", at_least=1.0),
      Rule(metric="temperature_five", arm="free", minus="amcl", at_least=0.2),
    ),
  ),
)

CLAIM = Claim(
  title="AMCL on cluttered digits",
  source="arXiv 2310.05615",
  about=simclr.ABOUT
  + " That is four kinds of change; five with an erased square, or one, the shift. The "
  "heads are parts of the embedding. Batches of 128, 40 epochs.",
  legend=(
    "kNN: accuracy of 5 nearest neighbours in the features, with one or five kinds of "
    "views. Temperature: mean of positives at the end. Forgiving: share of heads in "
    "which it falls with the similarity."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses",),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("knn_one", "kNN, one"),
    ("knn_five", "kNN, five"),
    ("linear_one", "linear, one"),
    ("linear_five", "linear, five"),
    ("temperature_five", "temperature, five"),
    ("forgiving_five", "forgiving, five"),
  ),
  draw=functools.partial(
    plot.draw,
    panels=(("knn_one", "kNN, one kind of view"), ("knn_five", "kNN, five kinds")),
    curves=(("temperature_five", "temperature of positives, five"),),
  ),
  choice=lab.choice(GRID, MERIT, TRIED),
)
