"""CatLIP's claim: to classify a caption's words teaches what CLIP teaches, for less."""

import functools
import time
from typing import Any

import numpy as np

from benchmarks.claims.shared import digits, lab, plot, probes
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement

ARMS = {
  "clip": "InfoNCE with a tower of captions",
  "catlip": "the words of the caption as classes of the image",
}
SYNONYMS, OTHERS = 2, 40  # of a digit; words of no matter
WORDS = 10 * SYNONYMS + OTHERS
FEW = 5  # examples of a class, of the small probe
GRID = dict(lr=(1e-3, 3e-3))
MERIT = ("linear",)
TUNED: dict[str, dict[str, Any]] = {"clip": {"lr": 0.001}, "catlip": {"lr": 0.001}}
TRIED: tuple[str, ...] = (
  "clip: 0.001: 0.654, 0.003: 0.616",
  "catlip: 0.001: 0.693, 0.003: 0.679",
)


def settings(arm: str, seed: int, **options: Any) -> lab.Recipe:
  """Returns the recipe of an arm, or of "untrained", a network as it starts."""
  towers: list[dict[str, Any]] = [dict(name="image", hidden=(128, 128))]
  objective: dict[str, Any] = dict(
    losses=(("multilabel", 1.0, dict(modalities=("image",), labels="words")),),
    heads=((("image",), "prototypes", dict(classes=WORDS, bias=-3.0)),),
  )
  if arm == "clip":
    towers.append(dict(name="text", hidden=(128, 128)))
    objective = dict(losses=(("infonce", 1.0, dict(pairs=(("image", "text"),))),))
  best = {"lr": 0.0} if arm == "untrained" else TUNED.get(arm, {}) | options
  return lab.recipe(
    seed=seed,
    towers=towers,
    objective=objective,
    steps=500,
    batch=128,
    rows=3000,
    noise=0.4,
    **best,
  )


def collages(recipe: lab.Recipe, image, label, rows: int, draw: int):
  """Returns images f32[n, 8, 16, 1] of two digits each, words, texts, and the digits.

  The words i32[n, 4]: a synonym of each digit, of which a fifth is left out (-1), and
  two words of no matter. The texts f32[n, 60] count them.
  """
  rng = np.random.default_rng((recipe["seed"], draw))
  pair = rng.integers(len(label), size=(rows, 2))
  both = np.concatenate([image[pair[:, 0]], image[pair[:, 1]]], axis=2)
  both = both + recipe["noise"] * rng.normal(size=both.shape)
  said = SYNONYMS * label[pair] + rng.integers(SYNONYMS, size=pair.shape)
  # The same word twice is one class.
  said[said[:, 0] == said[:, 1], 1] = -1
  said = np.where(rng.random(pair.shape) < 0.2, -1, said)
  first = rng.integers(OTHERS // 2, size=(rows, 1))
  noise = WORDS - OTHERS + np.concatenate([first, first + OTHERS // 2], axis=1)
  words = np.concatenate([said, noise], axis=1).astype(np.int32)
  text = np.zeros((rows, WORDS + 1), np.float32)
  np.put_along_axis(text, np.where(words < 0, WORDS, words), 1.0, axis=1)
  arrays = {"image": both.astype(np.float32), "words": words, "text": text[:, :WORDS]}
  return arrays, label[pair]


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains twice, the second time by the clock; probes which digits there are."""
  del workdir
  split = digits.load(recipe["seed"])
  learn, truth = collages(recipe, split.image, split.label, recipe["rows"], 0)
  new, asked = collages(recipe, split.test_image, split.test_label, 1000, 1)
  if len(recipe["towers"]) == 1:
    del learn["text"]
  lab.train(recipe, learn)
  begin = time.process_time()
  trained = lab.train(recipe, learn)
  seconds = time.process_time() - begin
  x, queries = (trained.features({"image": v["image"]})["image"] for v in (learn, new))
  figures = {"ms": 1000 * seconds / recipe["steps"]}
  figures["log_ms"] = float(np.log(figures["ms"]))
  few = FEW * 10
  for name, n in (("linear", len(x)), ("few", few)):
    found = [
      probes.linear((x[:n], truth[:n, i]), (queries, asked[:, i])) for i in (0, 1)
    ]
    figures[name] = float(np.mean(found))
  return Measured(figures, {"loss": plot.thin(trained.history["loss"])})


STATEMENTS = (
  Statement(
    name="quality",
    text="A linear probe finds in CatLIP's features what it finds in CLIP's, within "
    "two points",
    rules=(Rule(metric="linear", arm="catlip", minus="clip", at_least=-0.02),),
  ),
  Statement(
    name="cost",
    text="A step of CatLIP costs less: CLIP's takes 1.3 times as long",
    rules=(Rule(metric="log_ms", arm="clip", minus="catlip", at_least=0.262),),
  ),
  Statement(
    name="few labels",
    text="From 50 labelled images its features give five points more than the "
    "untrained network's",
    rules=(Rule(metric="few", arm="catlip", minus="untrained", at_least=0.05),),
  ),
)

CLAIM = Claim(
  title="CatLIP on collages of two digits",
  source="arXiv 2404.15653",
  about=(
    "Two digits side by side, 8 x 16 pixels with noise of 0.4; a caption has one of "
    "two synonyms of each, unless left out, one time in five, and two of 40 words of "
    "no matter. A network of 128-128-128-32 for images, of 60-128-128-32 for captions; "
    "500 steps of 128 of 3000 pairs; 1000 to test."
  ),
  legend=(
    "Accuracy of a linear probe of the features for the left and the right digit, the "
    "mean, of 3000 labels and of 50; CPU milliseconds of a step, once compiled."
  ),
  arms={"untrained": "the network as it starts", **ARMS},
  seeds=(0, 1, 2, 3),
  settings=settings,
  varies=("lr", "objective.heads", "objective.losses", "towers"),
  measure=measure,
  statements=STATEMENTS,
  columns=(("linear", "probe"), ("few", "probe, 50 labels"), ("ms", "ms a step")),
  draw=functools.partial(
    plot.draw,
    panels=(
      ("linear", "linear probe, 3000 labels"),
      ("few", "linear probe, 50 labels"),
      ("ms", "CPU milliseconds a step"),
    ),
    chance={"linear": 0.1, "few": 0.1},
  ),
  choice=lab.choice(GRID, MERIT, TRIED),
)
