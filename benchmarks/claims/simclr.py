"""SimCLR's claims: augmentations work together; what is before the head is better."""

import functools
from typing import Any

from benchmarks.claims.shared import lab, plot, probes
from benchmarks.claims.shared import simclr as setting
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement

ARMS = {
  "shift": "views differ by a shift, the crop of 8 x 8 pixels, alone",
  "light": "by a contrast and a field over the whole, the colour of grey pixels, alone",
  "both": "by shift, contrast and field",
}
PART: dict[str, dict[str, Any]] = {
  "shift": dict(shift=1),
  "light": dict(shift=0, contrast=0.3, clutter=setting.CLUTTER),
  "both": dict(shift=1, contrast=0.3, clutter=setting.CLUTTER),
}
GRID = dict(lr=(1e-3, 3e-3))
MERIT = ("linear",)
TUNED: dict[str, dict[str, Any]] = {
  "shift": dict(lr=0.001),
  "light": dict(lr=0.003),
  "both": dict(lr=0.003),
}
TRIED: tuple[str, ...] = (
  "shift: 0.001: 0.806, 0.003: 0.640",
  "light: 0.001: 0.938, 0.003: 0.963",
  "both: 0.001: 0.907, 0.003: 0.927",
)


def settings(arm: str, seed: int, **options: Any) -> lab.Recipe:
  """Returns the recipe of an arm, or of "untrained", a network as it starts."""
  untrained = arm == "untrained"
  best: dict[str, Any] = {"lr": 0.0} if untrained else TUNED.get(arm, {}) | options
  loss = ("ntxent", 1.0, dict(pairs=setting.PAIRS, temperature=0.2))
  views = dict(PART["both" if untrained else arm], noise=0.1)
  return setting.recipe(seed, (loss,), batch=64, views=views, **best)


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains, and probes the features and the embedding."""
  del workdir
  trained, split = setting.train(recipe)
  x, queries = (
    trained.embed({"image_1": image})["image_1"]
    for image in (split.image, split.test_image)
  )
  after = probes.linear((x, split.label), (queries, split.test_label))
  figures = setting.probed(trained, split) | {"embedding": after}
  figures["cost"] = after - figures["linear"]
  return Measured(figures, {"loss": plot.thin(trained.history["loss"])})


def _more(metric: str, arm: str, minus: str, bound: float = 0.0) -> Rule:
  return Rule(metric=metric, arm=arm, minus=minus, at_least=bound)


STATEMENTS = (
  Statement(
    name="composition",
    text="Augmentations together give better features than each alone, by two points",
    rules=tuple(_more("linear", "both", arm, 0.02) for arm in ("shift", "light")),
  ),
  Statement(
    name="learning",
    text="They give better ones than the untrained network, by five points",
    rules=(_more("linear", "both", "untrained", 0.05),),
  ),
  Statement(
    name="head",
    text="The layer before the head is worth more than what the loss compares, by a "
    "point",
    rules=(Rule(metric="cost", arm="both", at_most=-0.01),),
  ),
)

CLAIM = Claim(
  title="SimCLR on cluttered digits",
  source="arXiv 2002.05709",
  about=f"{setting.ABOUT} All views have noise. 40 epochs of batches of 64.",
  legend=(
    "5 nearest neighbours and a linear probe of the features, and a linear probe of "
    "the embedding, accuracy on the test digits."
  ),
  arms={"untrained": "the network as it starts", **ARMS},
  seeds=(0, 1, 2),
  settings=settings,
  varies=("lr", "prepare.clutter", "prepare.contrast", "prepare.shift"),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("knn", "5-NN, features"),
    ("linear", "linear probe, features"),
    ("embedding", "linear probe, embedding"),
  ),
  draw=functools.partial(
    plot.draw,
    panels=(("linear", "linear probe, features"), ("embedding", "of the embedding")),
  ),
  choice=lab.choice(GRID, MERIT, TRIED),
)
