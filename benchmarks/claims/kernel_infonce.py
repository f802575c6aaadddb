"""Kernel-InfoNCE's claim: other kernels than the Gaussian, and mixtures, do better."""

import functools
from typing import Any

from benchmarks.claims.shared import lab, plot, simclr
from benchmarks.claims.shared.claim import Claim
from benchmarks.claims.shared.verdict import Rule, Statement

ARMS = {
  "gaussian": "gamma 2: SimCLR's InfoNCE at temperature t / 2",
  "laplacian": "gamma 1",
  "half": "gamma 0.5",
  "sum": "gamma 1 and 2, half each, on one embedding",
  "concat": "gamma 1 and 2, each on one half of the embedding",
}
measure = simclr.measure
GRID = dict(temperature=(0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8))
MERIT = ("knn",)
TUNED: dict[str, dict[str, float]] = {
  "gaussian": {"temperature": 0.6},
  "laplacian": {"temperature": 0.2},
  "half": {"temperature": 0.05},
  "sum": {"temperature": 0.6},
  "concat": {"temperature": 0.2},
}
TRIED: tuple[str, ...] = (
  "gaussian: 0.025: 0.655, 0.05: 0.662, 0.1: 0.680, "
  "0.2: 0.698, 0.4: 0.724, 0.6: 0.733, 0.8: 0.721",
  "laplacian: 0.025: 0.701, 0.05: 0.730, 0.1: 0.729, "
  "0.2: 0.747, 0.4: 0.724, 0.6: 0.699, 0.8: 0.696",
  "half: 0.025: 0.747, 0.05: 0.762, 0.1: 0.760, "
  "0.2: 0.716, 0.4: 0.689, 0.6: 0.678, 0.8: 0.673",
  "sum: 0.025: 0.684, 0.05: 0.698, 0.1: 0.698, "
  "0.2: 0.714, 0.4: 0.722, 0.6: 0.726, 0.8: 0.720",
  "concat: 0.025: 0.659, 0.05: 0.693, 0.1: 0.696, "
  "0.2: 0.708, 0.4: 0.695, 0.6: 0.686, 0.8: 0.686",
)


def settings(arm: str, seed: int, **options: float) -> lab.Recipe:
  """Returns the recipe of an arm."""
  kernels: dict[str, dict[str, Any]] = {
    "gaussian": dict(gamma=2.0),
    "laplacian": dict(gamma=1.0),
    "half": dict(gamma=0.5),
    "sum": dict(gamma=1.0, share=0.5, mixture="sum"),
    "concat": dict(gamma=1.0, share=0.5, mixture="concat"),
  }
  kernel = kernels[arm] | dict(pairs=simclr.PAIRS, within=True)
  kernel |= TUNED.get(arm, {}) | options
  return simclr.recipe(seed, (("kernel_infonce", 1.0, kernel),), batch=64)


STATEMENTS = (
  Statement(
    name="mixture",
    text="A mixture on one embedding finds at least what the Gaussian finds",
    rules=(Rule(metric="knn", arm="sum", minus="gaussian", at_least=0.0),),
  ),
  Statement(
    name="concat",
    text="So does the mixture on two halves of the embedding",
    rules=(Rule(metric="knn", arm="concat", minus="gaussian", at_least=0.0),),
  ),
  Statement(
    name="laplacian",
    text="So does the Laplacian alone",
    rules=(Rule(metric="knn", arm="laplacian", minus="gaussian", at_least=0.0),),
  ),
  Statement(
    name="small",
    text="Whatever the difference between kernels that are tuned, it is within three "
    "points",
    rules=tuple(
      rule
      for arm in ("laplacian", "half", "sum", "concat")
      for rule in (
        Rule(metric="knn", arm=arm, minus="gaussian", at_least=-0.03),
        Rule(metric="knn", arm=arm, minus="gaussian", at_most=0.03),
      )
    ),
  ),
)

CLAIM = Claim(
  title="Kernels of InfoNCE on cluttered digits",
  source="arXiv 2303.15103",
  about=simclr.ABOUT + " Batches of 64, 40 epochs.",
  legend=(
    "kNN, linear: accuracies of 5 nearest neighbours and of ridge regression in the "
    "features. Uniformity: of the embeddings, lower is more even."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses",),
  measure=measure,
  statements=STATEMENTS,
  columns=(("knn", "kNN"), ("linear", "linear"), ("uniformity", "uniformity")),
  draw=functools.partial(
    plot.draw, panels=(("knn", "kNN"), ("linear", "linear probe"))
  ),
  choice=lab.choice(GRID, MERIT, TRIED),
)
