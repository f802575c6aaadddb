"""GCL's claim: training pairs weighed by their relevance order documents better."""

import functools

import jax
import numpy as np

from benchmarks.claims.shared import lab, plot
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement
from evaluators import ranking

ARMS = {
  "constant": "all pairs weigh alike: InfoNCE",
  "linear": "by grade / 100",
  "inverse": "by 1 / (101 - grade)",
}
AIM = (
  "Nothing was tuned, for no arm: the temperature is learned by all, and the rest is "
  "common to all."
)
PAIRS = (("query", "document"),)
LATENT, WIDTH = 8, 32
QUERIES, DOCUMENTS, LISTED = 200, 2000, 100  # the nearest 100 of a query have grades


def settings(arm: str, seed: int) -> lab.Recipe:
  """Returns the recipe of an arm."""
  loss = ("gcl", 1.0, dict(pairs=PAIRS, weight=arm))
  return lab.recipe(
    seed=seed,
    towers=[dict(name=m, hidden=(128,)) for m in PAIRS[0]],
    objective=dict(losses=(loss,)),
    steps=1000,
    batch=128,
    lr=1e-3,
    prepare=dict(noise=0.3),
    novel=0.2,  # of the queries are not trained on
    listed=10,  # documents of a query that are
  )


def world(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns queries [200, 32], documents [2000, 32] and grades 0..100 [200, 2000].

  Both show a latent vector through a random network. The document of the greatest
  inner product has grade 100, the next 99, and so on.
  """
  rng = np.random.default_rng(seed)
  u = rng.normal(size=(QUERIES, LATENT))
  v = rng.normal(size=(DOCUMENTS, LATENT))
  place = np.argsort(np.argsort(-(u @ v.T), axis=1), axis=1)
  grade = np.maximum(LISTED - place, 0)
  shown = (
    np.tanh(x @ rng.normal(size=(LATENT, 64)) / 2) @ rng.normal(size=(64, WIDTH)) / 4
    for x in (u, v)
  )
  query, document = (x.astype(np.float32) for x in shown)
  return query, document, grade


def noisy(batch, key, noise):
  """Returns the batch with noise on both sides, new in each step."""
  keys = jax.random.split(key, 2)
  noises = (jax.random.normal(k, batch[m].shape) for k, m in zip(keys, PAIRS[0]))
  return batch | {m: batch[m] + noise * x for m, x in zip(PAIRS[0], noises)}


def measure(recipe: lab.Recipe, workdir: str = "") -> Measured:
  """Trains on 10 listed documents of each seen query; orders all documents."""
  del workdir
  query, document, grade = world(recipe["seed"])
  rng = np.random.default_rng((recipe["seed"], 1))
  seen = int(QUERIES * (1 - recipe["novel"]))
  pairs = [
    (q, d)
    for q in range(seen)
    for d in rng.choice(np.flatnonzero(grade[q]), recipe["listed"], replace=False)
  ]
  q, d = np.array(pairs).T
  batch = {"query": query[q], "document": document[d]}
  batch["grade"] = grade[q, d].astype(np.float32)
  trained = lab.train(recipe, batch, noisy)
  z = trained.embed({"query": query, "document": document})
  scores = z["query"] @ z["document"].T
  # As those of a search engine: the best fifth of the list is what matters.
  gain = np.maximum(grade - 80, 0).astype(np.float64)
  each = ranking.ndcg(gain, scores, 10)
  listed = np.take_along_axis(grade, np.argsort(-scores, axis=1)[:, :10], axis=1) > 0
  figures = {
    "ndcg_seen": float(each[:seen].mean()),
    "ndcg_novel": float(each[seen:].mean()),
    "listed_seen": float(listed[:seen].mean()),
    "listed_novel": float(listed[seen:].mean()),
  }
  figures["favour"] = figures["ndcg_seen"] - figures["ndcg_novel"]
  return Measured(figures, {"loss": plot.thin(trained.history["loss"])})


STATEMENTS = (
  Statement(
    name="seen queries",
    text="Linear weights raise NDCG@10 of the queries that were trained on, by 0.02",
    rules=(Rule(metric="ndcg_seen", arm="linear", minus="constant", at_least=0.02),),
  ),
  Statement(
    name="novel queries",
    text="They raise that of queries never seen",
    rules=(Rule(metric="ndcg_novel", arm="linear", minus="constant", at_least=0.0),),
  ),
  Statement(
    name="where",
    text="They raise it more for the queries that were trained on",
    rules=(Rule(metric="favour", arm="linear", minus="constant", at_least=0.0),),
  ),
  Statement(
    name="order",
    text="It is the order that gains: of the first ten as many are on the list, within "
    "three points",
    rules=(
      Rule(metric="listed_seen", arm="linear", minus="constant", at_least=-0.03),
      Rule(metric="listed_seen", arm="linear", minus="constant", at_most=0.03),
    ),
  ),
  Statement(
    name="inverse",
    text="Weights of the inverse rank, which see the first places only, do better than "
    "linear ones",
    rules=(Rule(metric="ndcg_seen", arm="inverse", minus="linear", at_least=0.0),),
  ),
)

CLAIM = Claim(
  title="GCL on synthetic ranked lists",
  source="arXiv 2404.08535",
  about=(
    "200 queries and 2000 documents show vectors of 8 dimensions through random "
    "networks; the 100 documents of the greatest inner product are a query's list, of "
    "grades from 100 down. Of 160 queries 10 random documents of the list are trained "
    "on, 1000 steps of 128 pairs with noise; 40 queries are never seen."
  ),
  legend=(
    "NDCG@10 over all documents, the gain being the grade beyond 80; listed: share of "
    "the first ten that are on the query's list."
  ),
  arms=ARMS,
  seeds=(0, 1, 2, 3, 4),
  settings=settings,
  varies=("objective.losses",),
  measure=measure,
  statements=STATEMENTS,
  columns=(
    ("ndcg_seen", "NDCG@10, seen"),
    ("ndcg_novel", "NDCG@10, novel"),
    ("listed_seen", "listed, seen"),
    ("listed_novel", "listed, novel"),
  ),
  draw=functools.partial(
    plot.draw,
    panels=(
      ("ndcg_seen", "NDCG@10, seen queries"),
      ("ndcg_novel", "NDCG@10, novel queries"),
      ("listed_seen", "listed, seen queries"),
    ),
  ),
  choice=dict(aim=AIM),
)
