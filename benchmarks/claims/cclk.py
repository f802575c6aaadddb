"""CCLK's claim: negatives of the same hue make a representation blind to the hue."""

import functools

import numpy as np

from benchmarks.claims.shared import digits, lab, plot, probes, simclr
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement

ARMS = {
  "simclr": "InfoNCE over both views: all other digits are negatives",
  "cclk": "CCLK: negatives by how near their hue is",
}
AIM = (
  "Nothing was tuned, for no arm: the temperature is that which InfoNCE chose on other "
  "digits for the claim of DCL, and the kernel's width is a tenth of the circle's."
)


def settings(arm: str, seed: int) -> lab.Recipe:
  """Returns the recipe of an arm."""
  t = 0.2
  loss = {
    "simclr": (
      "kernel_infonce",
      1.0,
      dict(pairs=simclr.PAIRS, gamma=2.0, temperature=2 * t, within=True),
    ),
    "cclk": (
      "cclk",
      1.0,
      # Hues are points of a circle; a tenth of it is 0.4 in squared distance.
      dict(pairs=simclr.PAIRS, condition="hue", temperature=t, width=0.2, ridge=0.1),
    ),
  }[arm]
  views = dict(shift=1, noise=0.1, contrast=0.3)
  return simclr.recipe(seed, (loss,), batch=128, views=views, clutter=0.0)


def tinted(image: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns digits [n, 8, 8, 3] of random hues, and the hues f32[n, 2], on a circle."""
  angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, len(image))
  phase = angle[:, None] + np.array([0.0, 2.0, 4.0]) * np.pi / 3
  colour = ((1 + np.cos(phase)) / 2).astype(np.float32)
  hue = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
  return image * colour[:, None, None, :], hue


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains on tinted digits; asks the features for the class and for the hue."""
  del workdir
  seed = recipe["seed"]
  split = digits.load(seed, simclr.ROWS)
  image, hue = tinted(split.image, seed)
  test_image, test_hue = tinted(split.test_image, seed + 10_000)
  trained = lab.train(recipe, {"image": image, "hue": hue}, digits.views)
  x, queries = (
    trained.features({"image_1": v})["image_1"] for v in (image, test_image)
  )
  z, z_queries = (trained.embed({"image_1": v})["image_1"] for v in (image, test_image))
  figures = {
    "digit": probes.linear((x, split.label), (queries, split.test_label)),
    "knn": probes.knn((x, split.label), (queries, split.test_label)),
    "hue": probes.r2((x, hue), (queries, test_hue)),
    "hue_embedding": probes.r2((z, hue), (z_queries, test_hue)),
    "digit_embedding": probes.linear((z, split.label), (z_queries, split.test_label)),
  }
  return Measured(figures, {"loss": plot.thin(trained.history["loss"])})


STATEMENTS = (
  Statement(
    name="fair",
    text="Hue can be read from the embedding far less: R^2 falls by 0.3",
    rules=(Rule(metric="hue_embedding", arm="cclk", minus="simclr", at_most=-0.3),),
  ),
  Statement(
    name="features",
    text="So it is in the features before the head",
    rules=(Rule(metric="hue", arm="cclk", minus="simclr", at_most=-0.3),),
  ),
  Statement(
    name="digits",
    text="The class is read as well as before, within three points, from both",
    rules=(
      Rule(metric="digit", arm="cclk", minus="simclr", at_least=-0.03),
      Rule(metric="digit_embedding", arm="cclk", minus="simclr", at_least=-0.03),
    ),
  ),
)

CLAIM = Claim(
  title="CCLK on tinted digits",
  source="arXiv 2202.05458",
  about=(
    "Digits of 8 x 8 pixels, each in a hue of its own from a circle, no two of them "
    "alike, so that no group of equal hue can be drawn. Views shift the digit, change "
    "its contrast and add noise, and keep the hue. A network of 192-128-128 with a "
    "head of 64-32; batches of 128, 40 epochs."
  ),
  legend=(
    "Digit: accuracy of ridge regression. Hue: R^2 of ridge regression to the point on "
    "the circle. Both in the features and in the embedding past the head."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses",),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("hue_embedding", "hue, embedding"),
    ("digit_embedding", "digit, embedding"),
    ("hue", "hue, features"),
    ("digit", "digit, features"),
    ("knn", "kNN, features"),
  ),
  draw=functools.partial(
    plot.draw,
    panels=(
      ("hue_embedding", "hue R², embedding"),
      ("hue", "hue R², features"),
      ("digit_embedding", "digit, embedding"),
      ("digit", "digit, features"),
    ),
  ),
  choice=dict(aim=AIM),
)
