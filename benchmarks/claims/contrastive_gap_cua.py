"""The contrastive gap: CLIP parts even twin modalities, CUA's terms join them again."""

import functools

import jax
import numpy as np

from benchmarks.claims.shared import lab, plot, probes
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement
from evaluators import health

ARMS = {
  "clip": "InfoNCE at temperature 0.01, as in the paper",
  "clip_learned": "InfoNCE, the temperature learned from 0.07",
  "cua": "clip, alignment, and uniformity within each modality",
  "cuaxu": "cua, and uniformity across the modalities",
}
PAIRS = (("a", "b"),)
TEST = 1000


def settings(arm: str, seed: int) -> lab.Recipe:
  """Returns the recipe of an arm."""
  fixed = dict(pairs=PAIRS, temperature=0.01)
  loss = {
    "clip": ("infonce", 1.0, fixed | dict(learned=False)),
    "clip_learned": ("infonce", 1.0, dict(pairs=PAIRS)),
    "cua": ("cua", 1.0, fixed),
    "cuaxu": ("cua", 1.0, fixed | dict(across=1.0)),
  }[arm]
  return lab.recipe(
    seed=seed,
    towers=[dict(name=m, hidden=(64,)) for m in "ab"],
    objective=dict(losses=(loss,)),
    steps=1500,
    batch=128,
    lr=1e-3,
    prepare=dict(noise=0.1),
    rows=4000,
  )


def mixture(rows: int, seed: int, draw: int) -> np.ndarray:
  """Returns f32[rows, 64] of the seed's mixture of 20 Gaussians."""
  centre = np.random.default_rng(seed).normal(size=(20, 64))
  rng = np.random.default_rng((seed, draw))
  x = centre[rng.integers(20, size=rows)] + 0.5 * rng.normal(size=(rows, 64))
  return x.astype(np.float32)


def twins(x, noise, normal):
  """Returns both modalities of x [n, 64]: the same vector, with noise of its own."""
  return {m: x + noise * normal(i, x.shape) for i, m in enumerate("ab")}


def see(batch, key, noise):
  """Returns the batch's "x" as two modalities."""
  keys = jax.random.split(key, 2)
  return twins(batch["x"], noise, lambda i, shape: jax.random.normal(keys[i], shape))


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  return rng.normal(size=shape).astype(np.float32)


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains, and measures the gap and the retrieval on new points of the mixture."""
  del workdir
  x = mixture(recipe["rows"], recipe["seed"], 0)
  trained = lab.train(recipe, {"x": x}, see)
  rng = np.random.default_rng((recipe["seed"], 2))
  new = mixture(TEST, recipe["seed"], 1)
  noise = recipe["prepare"]["noise"]
  z = trained.embed(twins(new, noise, lambda _, shape: _normal(rng, shape)))
  a, b = z["a"], z["b"]
  figures = {
    "gap": health.modality_gap(a, b),
    "separable": probes.separability(a, b),
    "r1": probes.recall(a, b),
    "alignment": health.alignment(a, b),
    "uniformity": (health.uniformity(a) + health.uniformity(b)) / 2,
  }
  return Measured(figures, {"loss": plot.thin(trained.history["loss"])})


STATEMENTS = (
  Statement(
    name="gap",
    text="Two towers that see the same thing end apart under CLIP's loss: a linear "
    "classifier tells them",
    rules=(Rule(metric="separable", arm="clip", at_least=0.95),),
  ),
  Statement(
    name="closed",
    text="Alignment and uniformity close the gap, with and without the cross term",
    rules=(
      Rule(metric="separable", arm="cua", at_most=0.65),
      Rule(metric="separable", arm="cuaxu", at_most=0.65),
      Rule(metric="gap", arm="cua", minus="clip", at_most=-0.2),
    ),
  ),
  Statement(
    name="retrieval",
    text="Retrieval does not suffer, by more than two points",
    rules=(
      Rule(metric="r1", arm="cua", minus="clip", at_least=-0.02),
      Rule(metric="r1", arm="cuaxu", minus="clip", at_least=-0.02),
    ),
  ),
  Statement(
    name="learned",
    text="The gap is there with a learned temperature too",
    rules=(Rule(metric="separable", arm="clip_learned", at_least=0.95),),
  ),
)

CLAIM = Claim(
  title="The contrastive gap between twins",
  source="arXiv 2405.18570",
  about=(
    "Two networks of 64-64-32, of different random starts, see the same point of a "
    "mixture of 20 Gaussians, each with noise 0.1 of its own. 1500 steps of 128; 1000 "
    "new points to test."
  ),
  legend=(
    "Gap: distance of the centroids. Separable: accuracy of a linear classifier of "
    "which tower an embedding is from, 0.5 being no gap. R@1 of 1000, both directions."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses",),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("gap", "gap"),
    ("separable", "separable"),
    ("r1", "R@1"),
    ("alignment", "alignment"),
    ("uniformity", "uniformity"),
  ),
  draw=functools.partial(
    plot.draw,
    panels=(
      ("gap", "gap of the centroids"),
      ("separable", "told apart"),
      ("r1", "R@1"),
    ),
    chance={"separable": 0.5},
  ),
  choice=dict(
    aim="",
    pilots=(),
  ),
)
