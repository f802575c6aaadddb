"""Decoupled uniformity's claim: a prior replaces augmentation that is too weak."""

import functools
from typing import Any

import numpy as np

from benchmarks.claims.shared import digits, lab, plot, simclr
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement

ARMS = {
  "simclr": "InfoNCE over both views",
  "plain": "decoupled uniformity without a prior",
  "latent": "with a prior: the first 10 principal components of the clean digit",
  "attribute": "with a prior: the class, wrong for 3 digits of 10",
  "random": "with a prior that says nothing: 10 random numbers",
}
VIEWS = simclr.PAIRS[0]
# Of the temperature 0.1 of "simclr", and of the widths of the priors' kernels; "plain"
# has neither.
START = {"simclr": 0.1, "latent": 1.0, "attribute": 0.5, "random": 1.0}
GRID = dict(factor=(1.0, 2.0))
MERIT = ("linear",)
TUNED: dict[str, dict[str, float]] = {
  "simclr": dict(factor=1),
  "plain": dict(factor=1),
  "latent": dict(factor=2),
  "attribute": dict(factor=1),
  "random": dict(factor=1),
}
TRIED: tuple[str, ...] = (
  "simclr: 1: 0.849, 2: 0.836",
  "plain: 1: 0.846, 2: 0.846",
  "latent: 1: 0.847, 2: 0.852",
  "attribute: 1: 0.918, 2: 0.918",
  "random: 1: 0.844, 2: 0.843",
)


def settings(arm: str, seed: int, **options: float) -> lab.Recipe:
  """Returns the recipe of an arm."""
  value = START.get(arm, 0.0) * (TUNED.get(arm, {}) | options)["factor"]
  own: dict[str, Any] = dict(modalities=VIEWS)
  loss = ("decoupled_uniformity", 1.0, own)
  if arm == "simclr":  # t of squared distances is twice that of cosines
    own = dict(pairs=simclr.PAIRS, gamma=2.0, temperature=2 * value, within=True)
    loss = ("kernel_infonce", 1.0, own)
  elif value:
    own |= dict(prior="prior", width=value)
  return simclr.recipe(
    seed,
    (loss,),
    batch=128,
    views=simclr.WEAK,
    prior=arm if "prior" in own else "",
    wrong=0.3,
  )


def prior(kind: str, split: digits.Split, clean: np.ndarray, seed: int, wrong: float):
  """Returns f32[n, p]: what is known of the digits that are trained on."""
  rng = np.random.default_rng((seed, 1))
  if kind == "latent":
    x = clean.reshape(len(clean), -1)
    x = x - x.mean(axis=0)
    return (x @ np.linalg.svd(x, full_matrices=False)[2][:10].T).astype(np.float32)
  if kind == "attribute":
    other = rng.integers(10, size=len(split.label))
    label = np.where(rng.random(len(split.label)) < wrong, other, split.label)
    return np.eye(10, dtype=np.float32)[label]
  return rng.normal(size=(len(split.label), 10)).astype(np.float32)


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains with weak views and the arm's prior; probes."""
  del workdir
  seed = recipe["seed"]
  clean = digits.load(seed, simclr.ROWS).image  # no clutter
  split = digits.load(seed, simclr.ROWS, recipe["clutter"])
  known = prior(recipe["prior"], split, clean, seed, recipe["wrong"])
  trained, split = simclr.train(recipe, prior=known)
  arrays = {}
  length = trained.history.get("decoupled_uniformity/centroid_square")
  if length is not None:
    arrays["centroid"] = plot.thin(length)
  return Measured(simclr.probed(trained, split), arrays)


STATEMENTS = (
  Statement(
    name="latent",
    text="With weak views a latent prior lifts decoupled uniformity, by a point",
    rules=(Rule(metric="linear", arm="latent", minus="plain", at_least=0.01),),
  ),
  Statement(
    name="attribute",
    text="A weak attribute lifts it too, and more than the latent",
    rules=(
      Rule(metric="linear", arm="attribute", minus="plain", at_least=0.01),
      Rule(metric="linear", arm="attribute", minus="latent", at_least=0.0),
    ),
  ),
  Statement(
    name="random",
    text="A prior that says nothing does not, by a point or more",
    rules=(Rule(metric="linear", arm="random", minus="plain", at_most=0.01),),
  ),
  Statement(
    name="simclr",
    text="With the latent prior it learns more than SimCLR",
    rules=(Rule(metric="linear", arm="latent", minus="simclr", at_least=0.0),),
  ),
)

CLAIM = Claim(
  title="Decoupled uniformity with priors, weak views",
  source="arXiv 2206.01646",
  about=simclr.ABOUT.replace(
    "Each view draws a field, a shift, a contrast and noise of its own.",
    "Views differ by a little noise only, which leaves the field in place.",
  )
  + " Batches of 128, 40 epochs.",
  legend=(
    "kNN, linear: accuracies of 5 nearest neighbours and of ridge regression in the "
    "features."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses", "prior"),
  measure=measure,
  statements=STATEMENTS,
  columns=(("knn", "kNN"), ("linear", "linear")),
  draw=functools.partial(
    plot.draw, panels=(("linear", "linear probe"), ("knn", "kNN"))
  ),
  choice=lab.choice(GRID, MERIT, TRIED),
)
