"""Multiple instances' claim: scores pooled over regions beat a pooled embedding."""

from collections.abc import Mapping
import functools
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.claims.shared import lab, plot
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement
from evaluators import ranking

ARMS = {
  "pooled": "embedding level: regions are pooled, then compared (InfoNCE)",
  "mean": "instance level, the mean of the pairs' scores (SupCon over bags)",
  "lse": "instance level, logsumexp of the pairs' scores (MIL-NCE)",
}
PAIRS = (("image", "text"),)
KINDS, SENTENCES, CELLS = 60, 2, (4, 16)
WIDTH, TEST = 32, 500
AIM = (
  "Nothing was tuned, for no arm: the temperature is learned by all, and the rest is "
  "common to all."
)


def settings(arm: str, seed: int) -> lab.Recipe:
  """Returns the recipe of an arm."""
  loss = {
    "pooled": ("infonce", 1.0, dict(pairs=PAIRS)),
    "mean": ("supcon", 1.0, dict(pairs=PAIRS, temperature=0.07)),
    "lse": ("mil_nce", 1.0, dict(pairs=PAIRS, joint=False)),
  }[arm]
  return lab.recipe(
    seed=seed,
    towers=[dict(name=m, hidden=(64,)) for m in PAIRS[0]],
    objective=dict(losses=(loss,)),
    steps=600,
    batch=32,
    lr=3e-3,
    prepare=dict(instances=arm != "pooled"),
    rows=3000,
    cells=CELLS,
    noise=1.0,
  )


def reports(rows: int, cells: int, recipe: lab.Recipe, draw: int):
  """Returns images f32[n, cells, 32], sentences f32[n, 2, 32], ids and places [n, 2].

  Two of the cells show something, the others noise of the same size; a sentence names
  one of the two, in a vector of its own with some noise.
  """
  world = np.random.default_rng(recipe["seed"])
  seen, said = world.normal(size=(2, KINDS, WIDTH))
  rng = np.random.default_rng((recipe["seed"], draw))
  kinds = rng.permuted(np.tile(np.arange(KINDS), (rows, 1)), axis=1)[:, :SENTENCES]
  places = rng.permuted(np.tile(np.arange(cells), (rows, 1)), axis=1)[:, :SENTENCES]
  image = recipe["noise"] * rng.normal(size=(rows, cells, WIDTH))
  at = np.arange(rows)[:, None]
  image[at, places] = seen[kinds] + 0.3 * rng.normal(size=(rows, SENTENCES, WIDTH))
  text = said[kinds] + 0.3 * rng.normal(size=(rows, SENTENCES, WIDTH))
  arrays = {"image": image.astype(np.float32), "text": text.astype(np.float32)}
  return arrays | {"id": np.arange(rows, dtype=np.int32)}, places


def bags(batch, key, instances):
  """Returns the batch with a row for each region, its bag's sentences in turn."""
  del key
  if not instances:
    return batch
  b, cells, width = batch["image"].shape
  text = jnp.tile(batch["text"], (1, cells // SENTENCES, 1))
  return {
    "image": batch["image"].reshape(b * cells, width),
    "text": text.reshape(b * cells, width),
    "id": jnp.repeat(batch["id"], cells),
  }


def scored(trained: lab.Trained, test: Mapping[str, Any], instances: bool):
  """Returns scores of bags f32[n, n], and of own pairs f32[n, sentences, cells]."""
  n = len(test["image"])
  each = {}
  for m in PAIRS[0]:
    flat = test[m].reshape(-1, 1, WIDTH)
    each[m] = trained.embed({m: flat})[m].reshape(n, -1, flat.shape[-1])
  own = np.einsum("npd,nsd->nsp", each["image"], each["text"])
  if not instances:
    z = trained.embed(test)
    return z["image"] @ z["text"].T, own
  pairs = np.einsum("apd,bsd->abps", each["image"], each["text"])
  loss, params = trained.objective.parts[0][1], trained.params["objective"]
  if loss == "supcon":
    return pairs.mean(axis=(2, 3)), own
  scale = min(float(np.exp(params[loss]["log_scale"])), 100.0)
  return np.log(np.exp(scale * (pairs - 1)).sum(axis=2)).mean(axis=2), own


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains with few and with many cells of noise; finds reports, points at regions."""
  del workdir
  figures, arrays = {}, {}
  for cells in recipe["cells"]:
    train, _ = reports(recipe["rows"], cells, recipe, 0)
    trained = lab.train(recipe, train, bags)
    test, places = reports(TEST, cells, recipe, 1)
    scores, own = scored(trained, test, recipe["prepare"]["instances"])
    right = ranking.ranks(scores, np.arange(TEST)) == 0
    figures[f"r1_{cells}"] = float(right.mean())
    figures[f"pointing_{cells}"] = float((own.argmax(axis=2) == places).mean())
    arrays[f"loss_{cells}"] = plot.thin(trained.history["loss"])
  few, many = (figures[f"r1_{c}"] for c in recipe["cells"])
  figures["cost"] = few - many
  return Measured(figures, arrays)


STATEMENTS = (
  Statement(
    name="retrieval",
    text="With 14 cells of noise logsumexp over instances finds more reports than "
    "pooled embeddings, by ten points",
    rules=(Rule(metric="r1_16", arm="lse", minus="pooled", at_least=0.1),),
  ),
  Statement(
    name="noise",
    text="More cells of noise cost it less",
    rules=(Rule(metric="cost", arm="lse", minus="pooled", at_most=0.0),),
  ),
  Statement(
    name="pointing",
    text="A sentence's best region is the one that it names, for eight of ten",
    rules=(Rule(metric="pointing_16", arm="lse", at_least=0.8),),
  ),
  Statement(
    name="mean",
    text="The mean over instances, to which all regions count alike, finds fewer",
    rules=(Rule(metric="r1_16", arm="lse", minus="mean", at_least=0.0),),
  ),
)

CLAIM = Claim(
  title="Bags of regions and sentences",
  source="arXiv 2212.05561",
  about=(
    "Images are bags of 4 or 16 regions of 32 numbers, of which two show one of 60 "
    "things and the others noise; reports are two sentences, each of which names one. "
    "Networks of 32-64-32; 600 steps of 32 bags, 3000 to learn from, 500 new ones to "
    "test. The bags of the loss hold a row for each region."
  ),
  legend=(
    "R@1 of image to report among 500, by the number of regions; a few "
    "of which are alike, which no model can tell. Pointing: share of the sentences "
    "whose best region is the one they name (chance 1/4, 1/16)."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses", "prepare.instances"),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("r1_4", "R@1, 4 regions"),
    ("r1_16", "R@1, 16 regions"),
    ("pointing_4", "pointing, 4"),
    ("pointing_16", "pointing, 16"),
  ),
  draw=functools.partial(
    plot.draw,
    panels=(
      ("r1_4", "R@1, 4 regions"),
      ("r1_16", "R@1, 16 regions"),
      ("pointing_16", "pointing, 16 regions"),
    ),
    chance={"pointing_16": 1 / 16},
  ),
  choice=dict(aim=AIM),
)
