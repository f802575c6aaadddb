"""SimCLR on cluttered digits: views share a small network, probed before its head."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.claims.shared import digits, lab, plot, probes
from benchmarks.claims.shared.claim import Measured
from evaluators import health

PAIRS = (("image_1", "image_2"),)
ROWS = 1200  # to train on; the other 597 digits are tested
CLUTTER = 0.6  # in units of the range of a pixel; see digits.load
WEAK = dict(shift=0, noise=0.1)
STRONG = dict(shift=1, noise=0.2, contrast=0.3, clutter=CLUTTER)
ABOUT = (
  "Digits of 8 x 8 pixels under a smooth random field, which hides from pixels what "
  "they are (5 nearest neighbours find 0.64 of them). Each view draws a field, a "
  "shift, a contrast and noise of its own. A network of 64-128-128, whose features are "
  "probed, has a head of 64-32. 1200 digits to train on, 597 to test, split by sample."
)


def recipe(
  seed: int,
  losses: Sequence[tuple[str, float, Mapping[str, Any]]],
  *,
  batch: int,
  lr: float = 1e-3,
  epochs: int = 40,
  count: int = 2,
  views: Mapping[str, Any] | None = None,
  clutter: float = CLUTTER,
  **more: Any,
) -> dict[str, Any]:
  """Returns the recipe of a network that all views share.

  Args:
    seed: of the split of the digits too.
    losses: of the objective, over "image_1", "image_2", ...
    batch: digits in a step.
    lr: of Adam.
    epochs: over the digits.
    count: of the views.
    views: options of digits.view; None: STRONG.
    clutter: of the digits themselves.
    more: what only the claim reads.
  """
  body: dict[str, Any] = dict(hidden=(128, 128), head=(64,))
  towers = [dict(name=f"image_{i + 1}", **body) for i in range(count)]
  towers[1:] = [t | dict(shares="image_1") for t in towers[1:]]
  return lab.recipe(
    seed=seed,
    towers=towers,
    objective=dict(losses=list(losses)),
    steps=epochs * (ROWS // batch),
    batch=batch,
    lr=lr,
    prepare=dict(STRONG if views is None else views, count=count),
    clutter=clutter,
    **more,
  )


def resized(recipe: lab.Recipe, batch: int) -> lab.Recipe:
  """Returns the recipe with another batch size and as many epochs."""
  epochs = recipe["steps"] // (ROWS // recipe["batch"])
  return dict(recipe) | dict(batch=batch, steps=epochs * (ROWS // batch))


def train(recipe: lab.Recipe, **arrays: Any) -> tuple[lab.Trained, digits.Split]:
  """Trains on the digits of the recipe's seed, with more arrays if given."""
  split = digits.load(recipe["seed"], ROWS, recipe["clutter"])
  batch = {"image": split.image, **arrays}
  return lab.train(recipe, batch, digits.views), split


def probed(trained: lab.Trained, split: digits.Split) -> dict[str, float]:
  """Returns "knn" and "linear": accuracies of the test digits, from the features."""
  x, queries = (
    trained.features({"image_1": image})["image_1"]
    for image in (split.image, split.test_image)
  )
  train, test = (x, split.label), (queries, split.test_label)
  return {"knn": probes.knn(train, test), "linear": probes.linear(train, test)}


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains, and returns the probes and the uniformity of the embeddings."""
  del workdir
  trained, split = train(recipe)
  z = trained.embed({"image_1": split.test_image})["image_1"]
  figures = probed(trained, split) | {"uniformity": health.uniformity(z)}
  return Measured(figures, {"loss": plot.thin(trained.history["loss"])})
