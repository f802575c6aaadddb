"""CWCL's claim: what the frozen tower finds alike teaches the other from few pairs."""

import functools

import numpy as np

from benchmarks.claims.shared import lab, plot
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement

ARMS = {
  "lit": "InfoNCE against a frozen tower: LiT",
  "affine": "CWCL with the paper's weights, (cos + 1) / 2",
  "sharp": "CWCL with weights exp((cos - 1) / 0.1)",
}
PAIRS = (("frozen", "trained"),)
CLASSES, WIDTH, TEST = 20, 32, 2000
PAIRED = (300, 4000)  # pairs to learn from
AIM = (
  "Nothing was tuned, for no arm: the temperature is learned by all, and the rest is "
  "common to all."
)


def settings(arm: str, seed: int) -> lab.Recipe:
  """Returns the recipe of an arm, of the fewest pairs."""
  loss = {
    "lit": ("infonce", 1.0, dict(pairs=PAIRS)),
    "affine": ("cwcl", 1.0, dict(pairs=PAIRS)),
    "sharp": ("cwcl", 1.0, dict(pairs=PAIRS, kernel="exp", width=0.1)),
  }[arm]
  return lab.recipe(
    seed=seed,
    towers=[
      dict(name="frozen", hidden=(), project=False),
      dict(name="trained", hidden=(128,)),
    ],
    objective=dict(losses=(loss,)),
    dim=WIDTH,
    steps=800,
    batch=128,
    lr=1e-3,
    rows=PAIRED,
    within=0.6,
    noise=0.5,
  )


def data(recipe: lab.Recipe, rows: int, draw: int):
  """Returns ({"frozen": q, "trained": x} f32[rows, 32], classes, their centres).

  q is what a good frozen tower gives; x is the same thing seen by another sense.
  """
  world = np.random.default_rng(recipe["seed"])
  centre = lab.unit(world.normal(size=(CLASSES, WIDTH)))
  mix = world.normal(size=(WIDTH, WIDTH))
  rng = np.random.default_rng((recipe["seed"], draw))
  label = rng.integers(CLASSES, size=rows)
  spread = recipe["within"] * lab.unit(rng.normal(size=(rows, WIDTH)))
  q = lab.unit(centre[label] + spread)
  x = np.tanh(q @ mix) + recipe["noise"] * rng.normal(size=(rows, WIDTH))
  arrays = {"frozen": q.astype(np.float32), "trained": x.astype(np.float32)}
  return arrays, label, centre


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains on few and on many pairs; classifies new x by the nearest centre."""
  del workdir
  figures, arrays = {}, {}
  test, label, centre = data(recipe, TEST, 1)
  for rows in recipe["rows"]:
    trained = lab.train(recipe, data(recipe, rows, 0)[0])
    z = trained.embed({"trained": test["trained"]})["trained"]
    figures[f"zero_shot_{rows}"] = float(((z @ centre.T).argmax(1) == label).mean())
    arrays[f"loss_{rows}"] = plot.thin(trained.history["loss"])
    spread = trained.history.get("cwcl/effective_positives_frozen", np.ones(1))
    figures[f"positives_{rows}"] = float(spread.mean())
  few, many = (figures[f"zero_shot_{r}"] for r in recipe["rows"])
  figures["favour"] = few - many
  return Measured(figures, arrays)


STATEMENTS = (
  Statement(
    name="few pairs",
    text="With 300 pairs sharp weights find more than one-hot targets, by a point",
    rules=(Rule(metric="zero_shot_300", arm="sharp", minus="lit", at_least=0.01),),
  ),
  Statement(
    name="affine",
    text="The paper's affine weights do too",
    rules=(Rule(metric="zero_shot_300", arm="affine", minus="lit", at_least=0.0),),
  ),
  Statement(
    name="many pairs",
    text="The gain of sharp weights is greater with few pairs than with 4000",
    rules=(Rule(metric="favour", arm="sharp", minus="lit", at_least=0.0),),
  ),
  Statement(
    name="why",
    text="Where cosines spread round 0, affine weights are nearly uniform (over a "
    "hundred of 128 count), sharp ones are not (under 40)",
    rules=(
      Rule(metric="positives_300", arm="affine", at_least=100),
      Rule(metric="positives_300", arm="sharp", at_most=40),
    ),
  ),
)

CLAIM = Claim(
  title="CWCL on a synthetic transfer",
  source="arXiv 2309.14580",
  about=(
    "20 classes on a sphere of 32 dimensions; the frozen tower gives the point itself, "
    "the other sees tanh of a random map of it, with noise, through a network of "
    "32-128-32. 800 steps of 128 pairs, about 6 of a class; 300 or 4000 pairs to learn "
    "from."
  ),
  legend=(
    "Zero-shot: share of 2000 new x nearest to the centre of their class, by the "
    "number of pairs. Positives: exp of the entropy of the weights of a row, of 128."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses",),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("zero_shot_300", "zero-shot, 300 pairs"),
    ("zero_shot_4000", "zero-shot, 4000 pairs"),
    ("positives_300", "positives"),
  ),
  draw=functools.partial(
    plot.draw,
    panels=(
      ("zero_shot_300", "zero-shot, 300 pairs"),
      ("zero_shot_4000", "zero-shot, 4000 pairs"),
    ),
    chance={"zero_shot_300": 0.05, "zero_shot_4000": 0.05},
  ),
  choice=dict(aim=AIM),
)
