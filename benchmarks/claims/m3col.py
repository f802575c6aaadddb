"""M3CoL's claim: mixtures as positives of both their parts help a classifier."""

import functools
from typing import Any

import jax
import numpy as np
import scipy.stats

from benchmarks.claims.shared import digits, lab, plot
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement

ARMS = {
  "classifier": "cross-entropy of both halves together and of each alone",
  "infonce": "the same, and InfoNCE between the halves",
  "m3col": "the same, and M3Co, then soft targets after a third of the steps",
}
HALVES = ("left", "right")
PAIRS = (HALVES,)
SHARES = np.linspace(0, 1, 11)
AIM = (
  "Nothing was tuned, for no arm: rate, temperatures and the weight of a contrastive "
  "loss, that of the recipe, are common to all."
)
WEIGHT = 0.2  # of a contrastive loss, as in the recipe; the classifiers' sum is 3


def settings(arm: str, seed: int) -> lab.Recipe:
  """Returns the recipe of an arm."""
  classes = tuple(f"{m}_class" for m in (*HALVES, "fusion"))
  own: dict[str, Any] = dict(modalities=classes, labels="label", form="softmax")
  classify = ("multilabel", 3.0, own)
  heads = ((HALVES, "fusion", dict(classes=10, hidden=64)),)
  steps = 600
  mixed = tuple((f"{a}_mixed", b) for a, b in (HALVES, HALVES[::-1]))
  soft: dict[str, Any] = dict(
    kernel="exp", soft="both", width=0.125, temperature=0.125, learned=False
  )
  phases = {
    "m3col": dict(
      first=(("m3co", WEIGHT, dict(pairs=mixed)),),
      then=(("cwcl", WEIGHT, dict(pairs=(HALVES, HALVES[::-1]), **soft)),),
    )
  }.get(arm, dict(first=(), then=()))
  always: tuple[Any, ...] = (classify,)
  if arm == "infonce":
    always += (("infonce", WEIGHT, dict(pairs=PAIRS, temperature=0.1, learned=False)),)
  return lab.recipe(
    seed=seed,
    towers=[dict(name=m, hidden=(128,)) for m in HALVES],
    objective=dict(
      name="mixup",
      switch=steps // 3,
      modalities=HALVES,
      inputs=HALVES,
      heads=heads,
      always=always,
      **phases,
    ),
    steps=steps,
    batch=50,
    rows=300,
    noise=0.3,
    lr=1e-3,
  )


def data(recipe: lab.Recipe):
  """Returns the halves of noisy digits, f32[n, 32] each, to learn from and to test."""
  split = digits.load(recipe["seed"], recipe["rows"])
  rng = np.random.default_rng((recipe["seed"], 1))

  def halves(image, label):
    x = image[..., 0] + recipe["noise"] * rng.normal(size=image.shape[:3])
    sides = (x[:, :, :4], x[:, :, 4:])
    arrays = {m: s.reshape(-1, 32).astype(np.float32) for m, s in zip(HALVES, sides)}
    return arrays | {"label": label}

  return halves(split.image, split.label), halves(split.test_image, split.test_label)


def monotone(trained: lab.Trained, test) -> tuple[float, list[float]]:
  """Returns how cosines follow the share of a half that belongs to them.

  The left halves of two digits are mixed, and compared with the right half of one.

  Returns:
    The mean over pairs of the rank correlation of cosine and share; the mean cosines.
  """
  x = test["left"]
  other = np.roll(np.arange(len(x)), 1)  # the split is random; none is its own partner
  right = trained.embed({"right": test["right"]})["right"]
  cosine = []
  for share in SHARES:
    mixed = (share * x + (1 - share) * x[other]).astype(np.float32)
    cosine.append((trained.embed({"left": mixed})["left"] * right).sum(axis=1))
  each = np.stack(cosine, axis=1)
  found = [scipy.stats.spearmanr(SHARES, row).statistic for row in each]
  return float(np.mean(found)), [round(float(v), 4) for v in each.mean(axis=0)]


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains; classifies new digits by both halves, and follows mixtures."""
  del workdir
  learn, test = data(recipe)
  trained = lab.train(recipe, learn)
  encoded = trained.encode({m: test[m] for m in HALVES})
  heads = trained.params["objective"]["heads"]
  logits = trained.objective.topped(heads, encoded, jax.random.key(0), False)
  guess = {m: np.asarray(logits[f"{m}_class"].pooled) for m in (*HALVES, "fusion")}
  right = {m: float((g.argmax(1) == test["label"]).mean()) for m, g in guess.items()}
  order, cosine = monotone(trained, test)
  figures = {"accuracy": right["fusion"], "order": order}
  figures["alone"] = (right["left"] + right["right"]) / 2
  return Measured(figures, {"cosine": cosine})


def _more(metric: str, arm: str, minus: str, bound: float) -> Rule:
  return Rule(metric=metric, arm=arm, minus=minus, at_least=bound)


STATEMENTS = (
  Statement(
    name="gain",
    text="M3CoL classifies better than cross-entropy alone, by half a point",
    rules=(_more("accuracy", "m3col", "classifier", 0.005),),
  ),
  Statement(
    name="mixtures",
    text="And better than with InfoNCE beside it",
    rules=(_more("accuracy", "m3col", "infonce", 0.0),),
  ),
  Statement(
    name="monotone",
    text="A mixture is the nearer to the other half of a digit the more of it there "
    "is: a rank correlation over 0.8",
    rules=(Rule(metric="order", arm="m3col", at_least=0.8),),
  ),
  Statement(
    name="more than InfoNCE",
    text="InfoNCE, which sees no mixtures, orders them less well",
    rules=(_more("order", "m3col", "infonce", 0.0),),
  ),
)

CLAIM = Claim(
  title="M3CoL on halves of digits",
  source="arXiv 2409.17777",
  about=(
    "The left and the right half of digits of 8 x 8 pixels, with noise of 0.3, are two "
    "modalities; networks of 32-128-32 and classifiers of three layers of 64. 300 "
    "digits to learn from, 600 steps of 50; 1497 to test."
  ),
  legend=(
    "Accuracy by both halves, and the mean of those by one. Order: rank correlation of "
    "a mixture's cosine with the other half of a digit and of the share of that digit "
    "in it, the mean over the test digits."
  ),
  arms=ARMS,
  seeds=(0, 1, 2),
  settings=settings,
  varies=("objective.always", "objective.first", "objective.then"),
  measure=measure,
  statements=STATEMENTS,
  columns=(("accuracy", "accuracy"), ("alone", "by one half"), ("order", "order")),
  draw=functools.partial(
    plot.draw,
    panels=(("accuracy", "accuracy by both halves"), ("order", "order of mixtures")),
  ),
  choice=dict(aim=AIM),
)
