"""FILIP's claim: compared token by token, words find the patches that they name."""

from collections.abc import Mapping
import functools
from typing import Any

import numpy as np

from benchmarks.claims.shared import lab, plot
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement
from evaluators import ranking

ARMS = {
  "clip": "InfoNCE of pooled embeddings",
  "filip": "FILIP: late interaction of 16 patches and the words",
}
PAIRS = (("image", "text"),)
COLOURS, SHAPES, PATCHES, OBJECTS, LENGTH = 8, 8, 16, 3, 8
AIM = (
  "Nothing was tuned, for no arm: the temperature is learned by both, and the rest is "
  "common to both."
)
WIDTH, DIM, TEST = 64, 32, 500


def settings(arm: str, seed: int) -> lab.Recipe:
  """Returns the recipe of an arm."""
  widths = tuple((m, WIDTH) for m in PAIRS[0])
  loss = {
    "clip": ("infonce", 1.0, dict(pairs=PAIRS)),
    "filip": ("filip", 1.0, dict(pairs=PAIRS, widths=widths, projection=DIM)),
  }[arm]
  return lab.recipe(
    seed=seed,
    towers=[dict(name=m, hidden=(WIDTH,)) for m in PAIRS[0]],
    objective=dict(losses=(loss,)),
    dim=DIM,
    steps=600,
    batch=64,
    lr=3e-3,
    rows=4000,
    noise=0.5,
  )


def scenes(rows: int, recipe: lab.Recipe, draw: int) -> dict[str, np.ndarray]:
  """Returns images f32[n, 16, 24], captions f32[n, 8, 16] with their mask, and places.

  Three coloured shapes lie in different patches; the caption has their six words, one
  hot, in a random order, and padding. "named" bool[n, 16, 8]: the word is one of the
  two that name the patch.
  """
  world = np.random.default_rng(recipe["seed"])
  colour, shape = world.normal(size=(2, COLOURS, 24))
  rng = np.random.default_rng((recipe["seed"], draw))
  kinds = rng.integers(COLOURS, size=(rows, OBJECTS, 2))
  places = rng.permuted(np.tile(np.arange(PATCHES), (rows, 1)), axis=1)[:, :OBJECTS]
  image = recipe["noise"] * rng.normal(size=(rows, PATCHES, 24))
  at = np.arange(rows)[:, None]
  image[at, places] += colour[kinds[..., 0]] + shape[kinds[..., 1]]
  words = (kinds + np.array([0, COLOURS])).reshape(rows, -1)
  place = np.repeat(places, 2, axis=1)
  order = rng.permuted(np.tile(np.arange(2 * OBJECTS), (rows, 1)), axis=1)
  words, place = words[at, order], place[at, order]
  text = np.zeros((rows, LENGTH, COLOURS + SHAPES), np.float32)
  text[:, : 2 * OBJECTS] = np.eye(COLOURS + SHAPES)[words]
  named = np.zeros((rows, PATCHES, LENGTH), bool)
  named[:, :, : 2 * OBJECTS] = place[:, None, :] == np.arange(PATCHES)[None, :, None]
  # A word that two objects share names both.
  same = words[:, :, None] == words[:, None, :]
  named[:, :, : 2 * OBJECTS] = np.einsum("npw,nwv->npv", named[:, :, :6], same) > 0
  mask = np.tile(np.arange(LENGTH) < 2 * OBJECTS, (rows, 1))
  image = image.astype(np.float32)
  return {"image": image, "text": text, "text_mask": mask, "named": named}


def tokens(trained: lab.Trained, batch: Mapping[str, Any]):
  """Returns {modality: f32[n, k, d]}, of unit norm, as each arm compares them."""
  loss = trained.objective.parts[0][3]
  if hasattr(loss, "embed"):
    own = trained.params["objective"]["filip"]
    encoded = trained.encode(batch)
    return {m: np.asarray(loss.embed(own, m, encoded[m]).x) for m in PAIRS[0]}
  # A patch or a word as an image or a text of one: the pooled path, read token-wise.
  found = {}
  for m in PAIRS[0]:
    x = batch[m]
    z = trained.embed({m: x.reshape(-1, 1, x.shape[-1])})[m]
    found[m] = z.reshape(*x.shape[:2], -1)
  return found


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains; finds captions of new images, and the word of each object's patch."""
  del workdir
  train = scenes(recipe["rows"], recipe, 0)
  named = train.pop("named")
  trained = lab.train(recipe, train)
  test = scenes(TEST, recipe, 1)
  named = test.pop("named")
  each = tokens(trained, test)
  pair = np.einsum("apd,bwd->abpw", each["image"], each["text"][:, : 2 * OBJECTS])
  if trained.objective.parts[0][1] == "filip":
    scores = pair.max(axis=3).mean(axis=2)
  else:
    z = trained.embed(test)
    scores = z["image"] @ z["text"].T
  own = np.arange(TEST)
  word = pair[own, own].argmax(axis=2)  # [n, 16], of each patch
  right = np.take_along_axis(named, word[:, :, None], axis=2)[:, :, 0]
  object_ = named.any(axis=2)
  patch = pair[own, own].argmax(axis=1)  # [n, 6], of each word
  hit = named[own[:, None], patch, np.arange(2 * OBJECTS)[None, :]]
  figures = {
    "r1": float((ranking.ranks(scores, own) == 0).mean()),
    "word": float(right[object_].mean()),
    "patch": float(hit.mean()),
  }
  arrays = {"loss": plot.thin(trained.history["loss"])}
  arrays["example"] = np.round(pair[0, 0], 2).tolist()
  return Measured(figures, arrays)


STATEMENTS = (
  Statement(
    name="words",
    text="FILIP says which word a patch shows: of the six, one of the right two for "
    "seven objects of ten",
    rules=(Rule(metric="word", arm="filip", at_least=0.7),),
  ),
  Statement(
    name="emerges",
    text="Of pooled embeddings, read the same way, it does not come: under 0.45",
    rules=(Rule(metric="word", arm="clip", at_most=0.45),),
  ),
  Statement(
    name="patches",
    text="FILIP says where a word is, more often than CLIP",
    rules=(Rule(metric="patch", arm="filip", minus="clip", at_least=0.0),),
  ),
  Statement(
    name="retrieval",
    text="It finds more captions",
    rules=(Rule(metric="r1", arm="filip", minus="clip", at_least=0.0),),
  ),
)

CLAIM = Claim(
  title="FILIP on grids of coloured shapes",
  source="arXiv 2111.07783",
  about=(
    "Images of 4 x 4 patches, three of which show a colour and a shape (8 of each), "
    "and captions of the six words in random order, padded to eight. Each patch and "
    "each word goes through a network of its own tower, 64 wide; they meet in the loss "
    "only. 600 steps of 64 pairs; 500 new pairs to test."
  ),
  legend=(
    "R@1 of image to text among 500. Word: share of the objects' patches whose nearest "
    "word of the caption is one of their own (chance about 1/3). Patch: share of the "
    "words whose nearest patch is one that they name (chance about 1/16)."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses",),
  measure=measure,
  statements=STATEMENTS,
  columns=(("r1", "R@1"), ("word", "word"), ("patch", "patch")),
  draw=functools.partial(
    plot.draw,
    panels=(("r1", "R@1"), ("word", "word of a patch"), ("patch", "patch of a word")),
    chance={"word": 1 / 3, "patch": 1 / 16},
  ),
  choice=dict(aim=AIM),
)
