"""1-to-K's claim: all languages at once serve each of them alike, and better."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.claims.shared import lab, plot
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement
from evaluators import ranking

ARMS = {
  "english": "images with the first language, that with another, drawn for each row",
  "one_by_one": "images with one language, drawn for each row of each step",
  "one_to_k": "1-to-K: images with all languages at once",
  "as_many_texts": "1-to-K for a quarter of the steps: as many texts as one_by_one",
}
LANGUAGES = ("text", "text_2", "text_3", "text_4")
NOISE = (0.2, 0.5, 0.8, 1.1)  # of the languages: from well translated to badly
TEST = 500
AIM = (
  "Nothing was tuned, for no arm: the temperature is learned by all, and the rest is "
  "common to all."
)


def settings(arm: str, seed: int) -> lab.Recipe:
  """Returns the recipe of an arm."""
  english = (("image", "text"), ("text", "drawn"))
  many: tuple[str, float, dict[str, Any]]
  many = ("ccrk", 1.0, dict(one="image", many=LANGUAGES))
  loss = {
    "english": ("infonce", 1.0, dict(pairs=english)),
    "one_by_one": ("infonce", 1.0, dict(pairs=(("image", "drawn"),))),
  }.get(arm, many)
  texts = [dict(name="text", hidden=(128,))]
  texts += [dict(name=m, shares="text") for m in (*LANGUAGES[1:], "drawn")]
  return lab.recipe(
    seed=seed,
    towers=[dict(name="image", hidden=(128,)), *texts],
    objective=dict(losses=(loss,)),
    steps=200 if arm == "as_many_texts" else 800,
    batch=64,
    lr=1e-3,
    prepare=dict(others=arm == "english"),
    rows=3000,
  )


def data(rows: int, seed: int, draw: int) -> dict[str, np.ndarray]:
  """Returns images and texts in four languages, f32[rows, 48], of the same things.

  A language is a cipher: its own permutation of what an interlingua would say. A text
  begins with four marks that name its language, as its words would.
  """
  rng = np.random.default_rng(seed)
  see, say = (rng.normal(size=(16, 44)) / 4 for _ in range(2))
  order = [rng.permutation(44) for _ in LANGUAGES]
  rng = np.random.default_rng((seed, draw))
  x = rng.normal(size=(rows, 16))
  arrays = {"image": np.tanh(x @ see) + 0.2 * rng.normal(size=(rows, 44))}
  for i, (m, noise) in enumerate(zip(LANGUAGES, NOISE)):
    words = np.tanh(x @ say) + noise * rng.normal(size=(rows, 44))
    mark = np.tile(np.eye(4)[i], (rows, 1))
    arrays[m] = np.concatenate([words[:, order[i]], mark], axis=1)
  return {m: v.astype(np.float32) for m, v in arrays.items()}


def drawn(batch, key, others):
  """Returns the batch with "drawn": each row in one language, of the others or any."""
  names = LANGUAGES[1:] if others else LANGUAGES
  texts = jnp.stack([batch[m] for m in names])
  rows = texts.shape[1]
  which = jax.random.randint(key, (rows,), 0, len(names))
  return batch | {"drawn": texts[which, jnp.arange(rows)]}


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains; finds 500 new images from their texts in each language."""
  del workdir
  seed = recipe["seed"]
  trained = lab.train(recipe, data(recipe["rows"], seed, 0), drawn)
  z = trained.embed(data(TEST, seed, 1))
  own = np.arange(TEST)
  found = [ranking.ranks(z[m] @ z["image"].T, own) for m in LANGUAGES]
  recall = [float((rank == 0).mean()) for rank in found]
  figures = {f"r1_{i + 1}": r for i, r in enumerate(recall)}
  figures |= {"r1": float(np.mean(recall)), "spread": max(recall) - min(recall)}
  figures |= ranking.mean_rank_variance(np.stack(found, axis=1))
  return Measured(figures, {"loss": plot.thin(trained.history["loss"])})


STATEMENTS = (
  Statement(
    name="recall",
    text="Over the languages 1-to-K finds more than either way of one text at a time",
    rules=(
      Rule(metric="r1", arm="one_to_k", minus="english", at_least=0.0),
      Rule(metric="r1", arm="one_to_k", minus="one_by_one", at_least=0.0),
    ),
  ),
  Statement(
    name="consistency",
    text="Its ranks vary less over the languages: the lowest mean rank variance",
    rules=(
      Rule(metric="mrv", arm="one_to_k", minus="english", at_most=0.0),
      Rule(metric="mrv", arm="one_to_k", minus="one_by_one", at_most=0.0),
    ),
  ),
  Statement(
    name="equal texts",
    text="So it is with as many texts read as by one language a row",
    rules=(
      Rule(metric="r1", arm="as_many_texts", minus="one_by_one", at_least=0.0),
      Rule(metric="mrv", arm="as_many_texts", minus="one_by_one", at_most=0.0),
    ),
  ),
  Statement(
    name="spread",
    text="Recall differs less between the best and the worst language",
    rules=(
      Rule(metric="spread", arm="one_to_k", minus="english", at_most=0.0),
      Rule(metric="spread", arm="one_to_k", minus="one_by_one", at_most=0.0),
    ),
  ),
)

CLAIM = Claim(
  title="1-to-K on four ciphers",
  source="arXiv 2406.18254",
  about=(
    "Images and texts show the same 16 numbers; a language permutes what is said, and "
    "has more noise from the first to the fourth. Networks of 44-128-32 and 48-128-32, "
    "the second for all languages; 800 steps of 64 images, 3000 to learn from; 500 new "
    "images to be found from their texts."
  ),
  legend=(
    "R@1: text to image, the mean over the languages, and of the first and the last. "
    "MRV, MRD: variance and deviation of an instance's rank over the languages, in the "
    "mean. Spread: best less worst R@1 of a language."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses", "steps", "prepare.others"),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("r1", "R@1"),
    ("r1_1", "R@1, first"),
    ("r1_4", "R@1, last"),
    ("spread", "spread"),
    ("mrv", "MRV"),
    ("mrd", "MRD"),
  ),
  draw=functools.partial(
    plot.draw, panels=(("r1", "R@1"), ("mrv", "MRV"), ("spread", "spread of R@1"))
  ),
  choice=dict(aim=AIM),
)
