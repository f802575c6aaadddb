"""Hydra's claim: with a gate per pair of classes any two classes may be positives."""

import functools
from typing import Any

import jax
import numpy as np

from benchmarks.claims.shared import digits, lab, plot, simclr
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement
from evaluators import health

ARMS = {
  "supcon": "SupCon: positives of one class",
  "blind": "positives of any two classes, without a gate (InfoNCE of the pairs)",
  "hydra": "the same pairs, each compared through the gate of its classes: Hydra",
}
CLASSES = 10
AIM = (
  "Nothing was tuned, for no arm: the temperature is that which InfoNCE chose on these "
  "digits for the claim of DCL."
)
ALIKE = ((3, 8), (4, 9), (3, 5), (1, 7), (5, 8))  # in handwriting, by eye


def settings(arm: str, seed: int) -> lab.Recipe:
  """Returns the recipe of an arm."""
  own: dict[str, Any] = dict(pairs=simclr.PAIRS, temperature=0.2)
  loss = {
    "supcon": ("supcon", 1.0, own | dict(learned=False)),
    "blind": ("infonce", 1.0, own | dict(learned=False)),
    "hydra": (
      "hydra",
      1.0,
      own | dict(dim=32, classes=CLASSES, labels=("first", "second")),
    ),
  }[arm]
  recipe = simclr.recipe(seed, (loss,), batch=128)
  recipe["prepare"] |= dict(shuffle=arm != "supcon")
  return recipe


def paired(batch, key, shuffle, count, **options):
  """Returns two views of each digit; `shuffle`: the second of another one, any class.

  "id" is the class, of which rows are positives of each other for SupCon.
  """
  made = digits.views(batch, key, count, **options)
  label = batch["label"]
  order = jax.random.permutation(jax.random.fold_in(key, 1), len(label))
  if shuffle:
    made["image_2"] = made["image_2"][order]
  made |= {"first": label, "second": label[order] if shuffle else label}
  return made | {"id": label}


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains with labels; probes the features, without gates, and compares the gates."""
  del workdir
  split = digits.load(recipe["seed"], simclr.ROWS, recipe["clutter"])
  arrays = {"image": split.image, "label": split.label}
  trained = lab.train(recipe, arrays, paired)
  figures = simclr.probed(trained, split)
  test = {"image_1": split.test_image}
  x = trained.features(test)["image_1"]
  figures["rank"] = health.effective_rank(x - x.mean(axis=0))
  figures["uniformity"] = health.uniformity(trained.embed(test)["image_1"])
  loss = trained.objective.parts[0][3]
  kept: dict[str, Any] = {"loss": plot.thin(trained.history["loss"])}
  if hasattr(loss, "gate"):
    first, second = np.triu_indices(CLASSES, 1)
    own = trained.params["objective"]["hydra"]
    gate = np.asarray(loss.gate(own, first.astype(np.int32), second.astype(np.int32)))
    figures["open"] = float(gate.mean())
    alike = np.array([(a, b) in ALIKE for a, b in zip(first, second)])
    same = loss.gate(own, np.arange(CLASSES), np.arange(CLASSES))
    figures["open_same"] = float(np.asarray(same).mean())
    openness = gate.mean(axis=1)
    figures["alike_more_open"] = float(openness[alike].mean() - openness[~alike].mean())
  return Measured(figures, kept)


STATEMENTS = (
  Statement(
    name="collapse",
    text="Pairs of any two classes without a gate teach far less than pairs of one "
    "class: ten points of the linear probe",
    rules=(Rule(metric="linear", arm="blind", minus="supcon", at_most=-0.1),),
  ),
  Statement(
    name="rescue",
    text="With the gate they teach more than without, by five points",
    rules=(Rule(metric="linear", arm="hydra", minus="blind", at_least=0.05),),
  ),
  Statement(
    name="level",
    text="They come within five points of SupCon, or pass it",
    rules=(Rule(metric="linear", arm="hydra", minus="supcon", at_least=-0.05),),
  ),
  Statement(
    name="rank",
    text="The features keep more dimensions than SupCon's",
    rules=(Rule(metric="rank", arm="hydra", minus="supcon", at_least=0.0),),
  ),
  Statement(
    name="relations",
    text="Gates of digits that look alike are more open",
    rules=(Rule(metric="alike_more_open", arm="hydra", at_least=0.0),),
  ),
)

CLAIM = Claim(
  title="Hydra on cluttered digits",
  source="arXiv 2410.18200",
  about=simclr.ABOUT
  + " The second view is of the same digit, or of another of any class. Labels are "
  "known to SupCon and to the gate. Batches of 128, 40 epochs.",
  legend=(
    "kNN, linear: accuracies of 5 nearest neighbours and of ridge regression in the "
    "features, without gates. Rank: effective, of the centred features, of 128. Open: "
    "mean gate of two classes, and of one class with itself."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses", "prepare.shuffle"),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("knn", "kNN"),
    ("linear", "linear"),
    ("rank", "rank"),
    ("uniformity", "uniformity"),
    ("open", "open"),
    ("open_same", "open, same"),
    ("alike_more_open", "alike more open"),
  ),
  draw=functools.partial(
    plot.draw,
    panels=(("linear", "linear probe"), ("knn", "kNN"), ("rank", "effective rank")),
  ),
  choice=dict(aim=AIM),
)
