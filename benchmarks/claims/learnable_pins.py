"""Learnable PINs' claim: negatives not harder than the positive, nor all easy."""

import functools

import jax
import numpy as np

from benchmarks.claims.shared import lab, plot, probes
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement

ARMS = {
  "easy": "the farthest 0.3 of the voices, where the paper's curriculum begins",
  "capped": "the farthest 0.8, where it ends",
  "uncapped": "all voices farther than the positive",
  "hardest": "InfoNCE whose negatives weigh exp(4 s): the hardest above all",
}
PAIRS = (("face", "voice"),)
AIM = (
  "Nothing was tuned, for no arm: margin and shares are the paper's, the other loss is "
  "at its own paper's temperature, 0.5, and the rest is common to all."
)
IDENTITY, SEEN, UNSEEN, TRACKS = 8, 300, 60, 6


def settings(arm: str, seed: int) -> lab.Recipe:
  """Returns the recipe of an arm."""
  hardness = {"easy": 0.3, "capped": 0.8, "uncapped": 1.0}.get(arm, 0.0)
  loss = ("learnable_pins", 1.0, dict(pairs=PAIRS, hardness=hardness))
  if arm == "hardest":
    loss = ("hard_negative", 1.0, dict(pairs=PAIRS, beta=4.0, tau_plus=0.0))
  return lab.recipe(
    seed=seed,
    towers=[dict(name=m, hidden=(128,)) for m in PAIRS[0]],
    objective=dict(losses=(loss,)),
    steps=1000,
    batch=128,
    lr=1e-3,
    prepare=dict(noise=0.3),
    pose=0.7,
  )


def people(count: int, recipe: lab.Recipe, draw: int):
  """Returns ({"face", "voice"} f32[count * TRACKS, 32], identities).

  Both show the person through a random network. A track has a pose, which moves the
  face, and a mood, which moves the voice: they say nothing of each other.
  """
  world = np.random.default_rng(recipe["seed"])
  maps = world.normal(size=(2, 2 * IDENTITY, 32)) / 4
  rng = np.random.default_rng((recipe["seed"], draw))
  person = np.repeat(rng.normal(size=(count, IDENTITY)), TRACKS, axis=0)
  shown = {}
  for name, mix in zip(PAIRS[0], maps):
    own = recipe["pose"] * rng.normal(size=person.shape)
    shown[name] = np.tanh(np.concatenate([person, own], axis=1) @ mix)
  arrays = {m: x.astype(np.float32) for m, x in shown.items()}
  return arrays, np.repeat(np.arange(count), TRACKS)


def noisy(batch, key, noise):
  """Returns the batch with noise on both sides: another moment of the same track."""
  keys = jax.random.split(key, 2)
  noises = (jax.random.normal(k, batch[m].shape) for k, m in zip(keys, PAIRS[0]))
  return {m: batch[m] + noise * x for m, x in zip(PAIRS[0], noises)}


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains on tracks without identities; verifies people never seen."""
  del workdir
  trained = lab.train(recipe, people(SEEN, recipe, 0)[0], noisy)
  test, identity = people(UNSEEN, recipe, 1)
  z = trained.embed(test)
  scores = z["face"] @ z["voice"].T
  same = identity[:, None] == identity[None, :]
  own = np.eye(len(identity), dtype=bool)
  figures = {
    # Other tracks of the person: what is common is who it is.
    "auc": probes.auc(scores[same & ~own], scores[~same]),
    "distance": float(np.sqrt(np.maximum(2 - 2 * scores[~same], 0.0)).mean()),
    "r1_of_10": _among(scores, identity, 10, recipe["seed"]),
  }
  arrays = {"loss": plot.thin(trained.history["loss"])}
  count = trained.history.get("learnable_pins/chosen_face_voice")
  if count is not None:
    figures["chosen"] = float(count[-len(count) // 5 :].mean())
    arrays["chosen"] = plot.thin(count, 2)
  return Measured(figures, arrays)


def _among(scores: np.ndarray, identity: np.ndarray, n: int, seed: int) -> float:
  """Returns how often the own track scores best among n - 1 other people's."""
  rng = np.random.default_rng((seed, 3))
  right = 0
  for i, row in enumerate(scores):
    others = rng.choice(np.flatnonzero(identity != identity[i]), n - 1, replace=False)
    right += bool((row[i] > row[others]).all())
  return right / len(scores)


STATEMENTS = (
  Statement(
    name="identity",
    text="From tracks without identities, voices of people never seen are told by "
    "their faces in other tracks",
    rules=(Rule(metric="auc", arm="capped", at_least=0.7),),
  ),
  Statement(
    name="harder",
    text="The hardness that the curriculum ends with does better than that which it "
    "begins with",
    rules=(Rule(metric="auc", arm="capped", minus="easy", at_least=0.0),),
  ),
  Statement(
    name="cap",
    text="Leaving out the hardest of the negatives does no worse than taking all that "
    "are farther than the positive",
    rules=(Rule(metric="auc", arm="capped", minus="uncapped", at_least=-0.01),),
  ),
  Statement(
    name="hardest",
    text="It does better than looking at the hardest above all, which are often the "
    "same person in another track, by two points",
    rules=(Rule(metric="auc", arm="capped", minus="hardest", at_least=0.02),),
  ),
)

CLAIM = Claim(
  title="Learnable PINs on synthetic people",
  source="arXiv 1805.00833",
  about=(
    "A person is 8 numbers; faces and voices of 32 show them, and what is the track's "
    "own, through random networks. 300 people of 6 tracks, without their "
    "identities: a batch of 128 holds some people more than once. 1000 steps. "
    "60 other people are verified. Of the paper's schedule of the hardness only the "
    "two ends are run."
  ),
  legend=(
    "AUC of face and voice being one person's, of different tracks. 1 of 10: the own "
    "voice scores best among ten people's. Distance: mean of different people, near 0 "
    "in a collapse. Chosen: negatives of a row, last fifth of training."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses",),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("auc", "AUC"),
    ("r1_of_10", "1 of 10"),
    ("distance", "distance"),
    ("chosen", "chosen"),
  ),
  draw=functools.partial(
    plot.draw,
    panels=(("auc", "AUC of people never seen"), ("r1_of_10", "right of 10 voices")),
    curves=(("chosen", "negatives of a row"),),
    chance={"auc": 0.5, "r1_of_10": 0.1},
  ),
  choice=dict(aim=AIM),
)
