"""PCME's claim: what may match much is uncertain, and is found as well as by points."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims.shared import digits, lab, plot
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement

ARMS = {
  "points": "one draw without variance: the same loss of points",
  "pcme": "PCME: 7 draws of a Gaussian",
}
PAIRS = (("image", "text"),)
# What each caption says of a digit: its parity, its half of the ten, or its name.
MEANS = np.concatenate(
  [
    [np.arange(10) % 2 == i for i in (0, 1)],
    [np.arange(10) // 5 == i for i in (0, 1)],
    np.eye(10, dtype=bool),
  ]
)
GENERIC = 4  # captions that are true of five digits
GRID = dict(lr=(1e-3, 3e-3))
MERIT = ("r_precision",)
TUNED: dict[str, dict[str, Any]] = {"points": {"lr": 0.003}, "pcme": {"lr": 0.003}}
TRIED: tuple[str, ...] = (
  "points: 0.001: 0.861, 0.003: 0.922",
  "pcme: 0.001: 0.850, 0.003: 0.924",
)


def settings(arm: str, seed: int, **options: Any) -> lab.Recipe:
  """Returns the recipe of an arm."""
  draws, log_var = (7, -4.0) if arm == "pcme" else (1, -30.0)
  head = dict(draws=draws, log_var=log_var)
  own = dict(pairs=PAIRS, scale=5.0, shift=5.0)
  return lab.recipe(
    seed=seed,
    towers=[dict(name="image", hidden=(128,)), dict(name="text", hidden=(32,))],
    objective=dict(
      losses=(("pcme", 1.0, own),), heads=((PAIRS[0], "probabilistic", head),)
    ),
    dim=16,
    steps=800,
    batch=32,
    prepare=dict(noise=0.3),
    rows=1200,
    **(TUNED.get(arm, {}) | options),
  )


def told(batch, key, noise):
  """Returns noisy images, each with one of its three true captions, drawn anew."""
  keys = jax.random.split(key, 2)
  image = batch["image"]
  label = batch["label"]
  true = jnp.stack([label % 2, 2 + label // 5, 4 + label], axis=1)
  level = jax.random.randint(keys[0], label.shape, 0, 3)
  text = jax.nn.one_hot(true[jnp.arange(len(label)), level], len(MEANS))
  image = image + noise * jax.random.normal(keys[1], image.shape)
  return {"image": image, "text": text}


def gaussians(trained: lab.Trained, batch) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Returns modality -> means f32[n, 16] and the mean log sigma f32[n]."""
  heads = trained.params["objective"]["heads"]
  seen = trained.objective.topped(
    heads, trained.encode(batch), jax.random.key(0), False
  )
  return {
    m: (np.asarray(e.pooled), np.asarray(e.log_var).mean(axis=1) / 2)
    for m, e in seen.items()
  }


def r_precision(distance: np.ndarray, match: np.ndarray) -> np.ndarray:
  """Returns f64[n]: how many of the R nearest columns match; R do in all."""
  order = np.argsort(distance, axis=1, kind="stable")
  hits = np.take_along_axis(match, order, axis=1)
  return np.array([row[: row.sum()].mean() for row in hits])


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains; retrieves test digits by the 14 captions and back; reads sigmas."""
  del workdir
  split = digits.load(recipe["seed"], recipe["rows"])
  arrays = {"image": split.image, "label": split.label}
  trained = lab.train(recipe, arrays, told)
  captions = np.eye(len(MEANS), dtype=np.float32)
  seen = gaussians(trained, {"image": split.test_image, "text": captions})
  (image, doubt), (text, spread) = seen["image"], seen["text"]
  distance = np.linalg.norm(text[:, None] - image[None], axis=-1)
  match = MEANS[:, split.test_label]
  by_text, by_image = r_precision(distance, match), r_precision(distance.T, match.T)
  hidden = split.test_image.copy()
  hidden[:, 2:6, 2:6] = 0
  more = gaussians(trained, {"image": hidden})["image"][1] - doubt
  quarter = np.array_split(by_image[np.argsort(doubt, kind="stable")], 4)
  figures = {
    "r_precision": float((by_text.mean() + by_image.mean()) / 2),
    "generic": float(by_text[:GENERIC].mean()),
    "names": float(by_text[GENERIC:].mean()),
    "sigma_generic": float(spread[:GENERIC].mean() - spread[GENERIC:].mean()),
    "sigma_hidden": float(more.mean()),
    "sure": float(quarter[0].mean() - quarter[-1].mean()),
  }
  return Measured(figures, {"loss": plot.thin(trained.history["loss"])})


STATEMENTS = (
  Statement(
    name="captions",
    text="Captions that are true of five digits have a greater sigma than names, by a "
    "tenth",
    rules=(Rule(metric="sigma_generic", arm="pcme", at_least=0.1),),
  ),
  Statement(
    name="occlusion",
    text="Digits whose middle is hidden have a greater sigma",
    rules=(Rule(metric="sigma_hidden", arm="pcme", at_least=0.0),),
  ),
  Statement(
    name="calibration",
    text="The surest quarter of the test digits finds its captions better than the "
    "least sure quarter",
    rules=(Rule(metric="sure", arm="pcme", at_least=0.0),),
  ),
  Statement(
    name="retrieval",
    text="R-precision is no worse than with points, within a point",
    rules=(Rule(metric="r_precision", arm="pcme", minus="points", at_least=-0.01),),
  ),
)

CLAIM = Claim(
  title="PCME on captions of three kinds",
  source="arXiv 2101.05068",
  about=(
    "A digit of 8 x 8 pixels has one of three captions, drawn anew in each step: its "
    "parity, whether it is less than five, or its name. Networks of 64-128-16 and "
    "14-32-16, 800 steps of 32; 597 digits to test against the 14 captions."
  ),
  legend=(
    "R-precision of captions for digits and back, the mean; of generic captions and of "
    "names. Sigma: mean log sigma of generic captions less that of names; of occluded "
    "digits less that of whole ones. Sure: R-precision of the quarter of digits of "
    "least sigma, less that of the greatest. An arm of points has no sigma to speak of."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.heads",),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("r_precision", "R-precision"),
    ("generic", "generic captions"),
    ("names", "names"),
    ("sigma_generic", "sigma, generic"),
    ("sigma_hidden", "sigma, occluded"),
    ("sure", "sure"),
  ),
  draw=functools.partial(
    plot.draw,
    panels=(
      ("r_precision", "R-precision"),
      ("sigma_generic", "log sigma, generic less names"),
      ("sigma_hidden", "log sigma, occluded less whole"),
      ("sure", "R-precision, sure less unsure"),
    ),
  ),
  choice=lab.choice(GRID, MERIT, TRIED),
)
