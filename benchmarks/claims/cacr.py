"""CACR's claim: far positives pulled harder, near negatives pushed harder."""

import functools

import numpy as np

from benchmarks.claims.shared import digits, lab, plot, simclr
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement

ARMS = {
  "simclr": "InfoNCE over all pairs of the four views",
  "uniform": "attraction and repulsion, all positives and negatives alike",
  "cacr": "CACR: pull 1, push 2",
}
VIEWS = tuple(f"image_{i}" for i in range(1, 5))
PAIRS = tuple((a, b) for i, a in enumerate(VIEWS) for b in VIEWS[i + 1 :])
SAMPLING = ("even", "uneven")
RATIO = 10  # of the most frequent class to the rarest, where digits are uneven
AIM = (
  "Nothing was tuned, for no arm: SimCLR's temperature is 0.2 (0.4 of squared "
  "distances), what InfoNCE chose on these digits for the claim of DCL; push and pull "
  "are those of the paper for CIFAR-100."
)


def settings(arm: str, seed: int) -> lab.Recipe:
  """Returns the recipe of an arm."""
  loss = {
    "simclr": (
      "kernel_infonce",
      1.0,
      dict(pairs=PAIRS, gamma=2.0, temperature=0.4, within=True),
    ),
    "uniform": ("cacr", 1.0, dict(modalities=VIEWS, pull=0.0, push=0.0)),
    "cacr": ("cacr", 1.0, dict(modalities=VIEWS, pull=1.0, push=2.0)),
  }[arm]
  return simclr.recipe(seed, (loss,), batch=64, count=4, rows=600, ratio=RATIO)


def chosen(label: np.ndarray, rows: int, ratio: float, seed: int) -> np.ndarray:
  """Returns `rows` positions, drawn with weights by class from 1 to 1 / ratio."""
  rng = np.random.default_rng(seed)
  classes = int(label.max()) + 1
  share = ratio ** (-np.arange(classes) / (classes - 1))
  weight = rng.permutation(share)[label] / np.bincount(label)[label]
  return rng.choice(len(label), rows, replace=False, p=weight / weight.sum())


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains on even and on uneven classes; probes with labels of all digits, even."""
  del workdir
  figures, arrays = {}, {}
  split = digits.load(recipe["seed"], simclr.ROWS, recipe["clutter"])
  for name, ratio in zip(SAMPLING, (1.0, recipe["ratio"])):
    rows = chosen(split.label, recipe["rows"], ratio, recipe["seed"])
    trained = lab.train(recipe, {"image": split.image[rows]}, digits.views)
    for probe, value in simclr.probed(trained, split).items():
      figures[f"{probe}_{name}"] = value
    arrays[f"loss_{name}"] = plot.thin(trained.history["loss"])
  figures["cost"] = figures["knn_even"] - figures["knn_uneven"]
  return Measured(figures, arrays)


STATEMENTS = (
  Statement(
    name="weights",
    text="Weighing within positives and within negatives learns more than weighing all "
    "alike",
    rules=(Rule(metric="knn_even", arm="cacr", minus="uniform", at_least=0.0),),
  ),
  Statement(
    name="simclr",
    text="CACR learns more than SimCLR on the same four views",
    rules=(Rule(metric="knn_even", arm="cacr", minus="simclr", at_least=0.0),),
  ),
  Statement(
    name="uneven",
    text="So it does, against both, where some classes are ten times rarer",
    rules=(
      Rule(metric="knn_uneven", arm="cacr", minus="uniform", at_least=0.0),
      Rule(metric="knn_uneven", arm="cacr", minus="simclr", at_least=0.0),
    ),
  ),
  Statement(
    name="robustness",
    text="Uneven classes cost CACR less than SimCLR",
    rules=(Rule(metric="cost", arm="cacr", minus="simclr", at_most=0.0),),
  ),
)

CLAIM = Claim(
  title="CACR on cluttered digits",
  source="arXiv 2105.03746",
  about=simclr.ABOUT
  + " Here 600 of the 1200 are trained on, of even classes or drawn with weights from "
  "1 to 1/10 (without replacement, so that counts differ less), with four views each, "
  "in batches of 64; probes have the labels of all 1200.",
  legend=(
    "kNN, linear: accuracies of 5 nearest neighbours and of ridge regression in the "
    "features, after training on even or uneven classes."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses",),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("knn_even", "kNN, even"),
    ("knn_uneven", "kNN, uneven"),
    ("linear_even", "linear, even"),
    ("linear_uneven", "linear, uneven"),
    ("cost", "kNN lost"),
  ),
  draw=functools.partial(
    plot.draw,
    panels=(("knn_even", "kNN, even classes"), ("knn_uneven", "kNN, uneven classes")),
  ),
  choice=dict(aim=AIM),
)
