"""CMC's claim: the more views a view is compared with, the more it learns."""

import functools
import itertools
from typing import Any

import jax
import numpy as np

from benchmarks.claims.shared import digits, lab, plot, probes
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement

ARMS = {
  "two": "pixels with edges",
  "three": "pixels with edges, and with a coarse image",
  "four": "pixels with edges, a coarse image, and sums: the core view",
  "full": "all pairs of the four: the full graph",
}
VIEWS = ("pixels", "edges", "coarse", "sums")
CORE = tuple((VIEWS[0], view) for view in VIEWS[1:])
GRID = dict(lr=(1e-3, 3e-3))
MERIT = ("pixels",)
TUNED: dict[str, dict[str, Any]] = {
  "two": {"lr": 0.003},
  "three": {"lr": 0.003},
  "four": {"lr": 0.003},
  "full": {"lr": 0.003},
}
TRIED: tuple[str, ...] = (
  "two: 0.001: 0.836, 0.003: 0.850",
  "three: 0.001: 0.845, 0.003: 0.855",
  "four: 0.001: 0.834, 0.003: 0.859",
  "full: 0.001: 0.844, 0.003: 0.860",
)


def settings(arm: str, seed: int, **options: Any) -> lab.Recipe:
  """Returns the recipe of an arm."""
  pairs = {"two": CORE[:1], "three": CORE[:2], "four": CORE}
  full = tuple(itertools.combinations(VIEWS, 2))
  own: dict[str, Any] = dict(
    name="bank", rows=1200, form="nce", drawn=256, temperature=0.1
  )
  return lab.recipe(
    seed=seed,
    towers=[dict(name=m, hidden=(128,)) for m in VIEWS],
    objective=own | dict(pairs=pairs.get(arm, full)),
    steps=600,
    batch=64,
    prepare=dict(noise=0.3),
    rows=1200,
    **(TUNED.get(arm, {}) | options),
  )


def senses(image: np.ndarray) -> dict[str, np.ndarray]:
  """Returns the four views of digits f32[n, 8, 8, 1], f32[n, f] each, without noise."""
  x = image[..., 0]
  down = np.diff(x, axis=1)[:, :, :7]
  right = np.diff(x, axis=2)[:, :7]
  made = {
    "pixels": x,
    "edges": np.hypot(down, right),
    "coarse": x.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)),
    "sums": np.concatenate([x.mean(axis=1), x.mean(axis=2)], axis=1),
  }
  return {m: v.reshape(len(x), -1).astype(np.float32) for m, v in made.items()}


def noisy(batch, key, noise):
  """Returns the batch with noise on each view, new in each step."""
  keys = jax.random.split(key, len(VIEWS))
  noises = {m: jax.random.normal(k, batch[m].shape) for m, k in zip(VIEWS, keys)}
  return batch | {m: batch[m] + noise * x for m, x in noises.items()}


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains; probes the features of each view."""
  del workdir
  split = digits.load(recipe["seed"], recipe["rows"])
  arrays = senses(split.image) | {"id": np.arange(recipe["rows"], dtype=np.int32)}
  trained = lab.train(recipe, arrays, noisy)
  x, queries = (
    trained.features(noisy(senses(image), jax.random.key(i), **recipe["prepare"]))
    for i, image in enumerate((split.image, split.test_image))
  )
  figures = {
    m: probes.linear((x[m], split.label), (queries[m], split.test_label)) for m in VIEWS
  }
  figures["mean"] = float(np.mean([figures[m] for m in VIEWS]))
  return Measured(figures, {"loss": plot.thin(trained.history["loss"])})


def _more(metric: str, arm: str, minus: str, bound: float = 0.0) -> Rule:
  return Rule(metric=metric, arm=arm, minus=minus, at_least=bound)


STATEMENTS = (
  Statement(
    name="more views",
    text="Compared with three other views, pixels learn more than with one, by a point",
    rules=(_more("pixels", "four", "two", 0.01),),
  ),
  Statement(
    name="each view",
    text="Each further view adds to it",
    rules=(_more("pixels", "three", "two"), _more("pixels", "four", "three")),
  ),
  Statement(
    name="full graph",
    text="Over the four views the full graph does better than the core view, by a "
    "point",
    rules=(_more("mean", "full", "four", 0.01),),
  ),
)

CLAIM = Claim(
  title="CMC with two, three and four views of digits",
  source="arXiv 1906.05849",
  about=(
    "Digits of 8 x 8 pixels, their edges, their means over 2 x 2 pixels, and their "
    "means over rows and columns, with noise of 0.3 each, new in each step. A network "
    "of one hidden layer of 128 for each view; a bank, 256 negatives; 600 steps of 64 "
    "of 1200 digits; 597 to test."
  ),
  legend=(
    "Linear probe of the features of pixels, and the mean over the four views, of "
    "which some arms train two or three. Test digits have the noise, too."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.pairs",),
  measure=measure,
  statements=STATEMENTS,
  columns=(("pixels", "pixels"), ("mean", "four views")),
  draw=functools.partial(
    plot.draw,
    panels=(("pixels", "probe of pixels"), ("mean", "mean probe of four views")),
  ),
  choice=lab.choice(GRID, MERIT, TRIED),
)
