"""What no learning of representations reaches on the emoji: floors to compare with.

python -m benchmarks.emoji_floors --seeds 5 --out floors.json [--descriptors]

- retrieval: ridge regression from 24x24 pixels to a TF-IDF + SVD space of the names.
  The n-grams, the rank and the ridge are chosen by cross-validation over families of
  the training items alone.
- probe: ridge classifier of the pixels into the groups.
- with --descriptors both read, instead of pixels, what the recipes' wide path reads,
  histograms of gradients and colors: how much of the recall these alone bring.
- style: nearest neighbour in pixels between two styles of drawing.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import io
import json
import pathlib
import sys
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from configs import base, emoji
from evaluators import gallery, retrieval
from input_pipeline.sources import emoji as source
from model.layers import descriptors
from training import environment

COMMAND = "python -m benchmarks.emoji_floors"
SIDE = 24  # pixels
FOLDS = 3
RANKS = (256, 512)  # of the text space
ALPHAS = (30.0, 100.0, 300.0)  # ridge, on pixels in 0..1
EMPTY = 1e-9
CHUNK = 256  # pictures described at a time


@dataclasses.dataclass(frozen=True)
class Items:
  """A split as arrays.

  Attributes:
    features: f32[n, p], SIDE * SIDE * 3 pixels in 0..1 or the descriptors.
    names: n English names.
    id: i64[n]; equal ids are the same concept or the same picture.
    family: i64[n]; items that a fair split keeps together.
    group: i64[n], the class to probe, -1 where unlabelled.
    key: n names of concepts, the same in every source.
    flag: bool[n], whether the item is a flag.
  """

  features: np.ndarray
  names: list[str]
  id: np.ndarray
  family: np.ndarray
  group: np.ndarray
  key: list[str]
  flag: np.ndarray


def read(
  source: Any, side: int = SIDE, language: str = "en", described: bool = False
) -> Items:
  """Returns the items of a source of raw examples, decoded and shrunk or described."""
  rows = [source[i] for i in range(len(source))]
  _, family = np.unique([str(r["family"]) for r in rows], return_inverse=True)
  size = emoji.SIZE if described else side
  pictures = np.stack([shrink(r["image_bytes"], size) for r in rows])
  return Items(
    features=describe(pictures) if described else pictures,
    names=[r["captions"][language][0] for r in rows],
    id=np.asarray([r["id"] for r in rows], np.int64),
    family=family,
    group=np.asarray([r.get("label_group", -1) for r in rows], np.int64),
    key=[str(r.get("key", r["id"])) for r in rows],
    flag=np.asarray([r.get("label_flag", 0) == 1 for r in rows]),
  )


def shrink(data: bytes, side: int = SIDE) -> np.ndarray:
  """Returns f32[side * side * 3] in 0..1 of an encoded image, composited on white."""
  with Image.open(io.BytesIO(data)) as image:
    rgba = image.convert("RGBA")
  white = Image.new("RGBA", rgba.size, "white")
  white.alpha_composite(rgba)
  small = white.convert("RGB").resize((side, side), Image.Resampling.BOX)
  return np.asarray(small, np.float32).ravel() / 255.0


def describe(pixels: np.ndarray) -> np.ndarray:
  """Returns f32[n, p] of f32[n, h * h * 3] in 0..1: what the recipes' wide path reads.

  Scaled so that one feature varies about as much as one pixel: ALPHAS then suit both.
  """
  config = base.get_config()
  emoji.set_model(config)
  image = config.model.modalities.image
  x = (pixels.reshape(-1, emoji.SIZE, emoji.SIZE, 3) - emoji.MEAN) / emoji.STD
  found = []
  cells, bins = image.colors
  for chunk in np.split(x, range(CHUNK, len(x), CHUNK)):
    part = jnp.asarray(chunk)
    edges = descriptors.gradients(part, *image.gradients)
    colors = descriptors.colors(part, cells, bins, image.color_range)
    both = [np.asarray(d).reshape(len(part), -1) for d in (edges, colors)]
    found.append(np.concatenate(both, axis=1))
  return np.concatenate(found) * emoji.STD


class Ridge:
  """Ridge regression with an intercept, for every strength at the cost of one.

  The dual form: there are more pixels than pictures.
  """

  def __init__(self, x: np.ndarray):
    self.mean = x.mean(axis=0)
    self.x = x - self.mean
    values, self.vectors = np.linalg.eigh(self.x @ self.x.T)
    self.values = np.maximum(values, 0.0)

  def inputs(self, x: np.ndarray) -> np.ndarray:
    """Returns new x [m, p] in the eigenbasis of the fitted ones: [m, n]."""
    return ((x - self.mean) @ self.x.T) @ self.vectors

  def targets(self, y: np.ndarray) -> np.ndarray:
    """Returns targets y [n, d], less their mean, in the same basis: [n, d]."""
    return self.vectors.T @ (y - y.mean(axis=0))

  def predict(self, y: np.ndarray, x: np.ndarray, alpha: float) -> np.ndarray:
    """Returns [m, d], less the mean of y, of `targets(y)` and `inputs(x)`."""
    return (x / (self.values + alpha)) @ y


def text_spaces() -> dict[str, Any]:
  """Returns the candidates for TF-IDF, by name."""
  from sklearn.feature_extraction.text import TfidfVectorizer
  from sklearn.pipeline import FeatureUnion

  def grams(analyzer, low, high):
    return TfidfVectorizer(
      analyzer=analyzer, ngram_range=(low, high), sublinear_tf=True, dtype=np.float32
    )

  both = [("letters", grams("char_wb", 3, 5)), ("words", grams("word", 1, 2))]
  return {
    "letters 2-4": grams("char_wb", 2, 4),
    "words 1-2": grams("word", 1, 2),
    "letters 3-5 + words 1-2": FeatureUnion(both),
  }


def embed_names(
  space: Any, train: Sequence[str], test: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns (f32[n, r], f32[m, r]): both lists in the SVD space of the first.

  Columns come in order of their singular values. The names are few: their products are
  cheaper than a truncated SVD, and exact.
  """
  counts = space.fit_transform(train)
  values, vectors = np.linalg.eigh((counts @ counts.T).toarray())
  kept = np.argsort(-values)[: max(RANKS)]
  kept = kept[values[kept] > EMPTY * values.max()]
  scale = np.sqrt(values[kept])
  new = (space.transform(test) @ counts.T).toarray() @ (vectors[:, kept] / scale)
  return vectors[:, kept] * scale, new


def unit(x: np.ndarray) -> np.ndarray:
  """Returns x [n, d] as f32 rows of unit length."""
  norm = np.linalg.norm(x, axis=1, keepdims=True)
  return (x / np.maximum(norm, EMPTY)).astype(np.float32)


def centred(train: np.ndarray, test: np.ndarray) -> np.ndarray:
  """Returns unit names less the mean of the known ones, which all share: f32[m, r]."""
  return unit(unit(test) - unit(train).mean(axis=0))


def folds(family: np.ndarray, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (fit, held out) positions; a family is never on both sides."""
  order = np.random.default_rng(0).permutation(family.max() + 1) % count
  for f in range(count):
    held = order[family] == f
    yield np.flatnonzero(~held), np.flatnonzero(held)


def choose(train: Items) -> dict[str, Any]:
  """Returns the space, rank and alpha of the best R@10 over folds of the train set."""
  scores: dict[tuple[str, int, float], list[float]] = {}
  for fit, held in folds(train.family, FOLDS):
    ridge = Ridge(train.features[fit])
    x = ridge.inputs(train.features[held])
    names = [[train.names[i] for i in part] for part in (fit, held)]
    for name, space in text_spaces().items():
      known, new = embed_names(space, *names)
      for rank in RANKS:
        items = centred(known[:, :rank], new[:, :rank])
        y = ridge.targets(unit(known[:, :rank]))
        for alpha in ALPHAS:
          q = unit(ridge.predict(y, x, alpha))
          found = gallery.search(q, items, train.id[held], train.id[held])
          r10 = float((found.rank < 10).mean())
          scores.setdefault((name, rank, alpha), []).append(r10)
  best = max(scores, key=lambda key: np.mean(scores[key]))
  return dict(zip(("space", "rank", "alpha"), best)) | {
    "cv_r10": float(np.mean(scores[best]))
  }


def retrieval_floor(train: Items, test: Items) -> dict[str, Any]:
  """Returns i2t_* and t2i_* recalls of the ridge, their chance, and what was chosen.

  The same again without flags, from the same fit, as without_flag/...
  """
  chosen = choose(train)
  space = text_spaces()[chosen["space"]]
  embedded = embed_names(space, train.names, test.names)
  known, new = (x[:, : chosen["rank"]] for x in embedded)
  ridge = Ridge(train.features)
  y, x = ridge.targets(unit(known)), ridge.inputs(test.features)
  q, g = unit(ridge.predict(y, x, chosen["alpha"])), centred(known, new)
  out: dict[str, Any] = {"chosen": chosen}
  parts = {"": np.ones(len(test.id), bool)}
  if test.flag.any() and not test.flag.all():
    parts["without_flag/"] = ~test.flag
  for part, rows in parts.items():
    ids = test.id[rows]
    out[f"{part}n"] = len(ids)
    for name, a, b in (("i2t", q[rows], g[rows]), ("t2i", g[rows], q[rows])):
      found = gallery.search(a, b, ids, ids)
      for key, value in retrieval.summarise(found, len(ids)).items():
        out[f"{part}{name}_{key}"] = value
  return out


def probe_floor(train: Items, test: Items) -> dict[str, float]:
  """Returns the accuracy of a ridge classifier of the pixels into the groups."""
  fit = train.group >= 0
  x, label = train.features[fit], train.group[fit]
  target = np.eye(label.max() + 1, dtype=np.float32)[label]

  def hits(fit: np.ndarray, new: np.ndarray, truth: np.ndarray) -> dict[float, float]:
    ridge = Ridge(x[fit])
    y, at, mean = (
      ridge.targets(target[fit]),
      ridge.inputs(new),
      target[fit].mean(axis=0),
    )
    guesses = {a: (ridge.predict(y, at, a) + mean).argmax(axis=1) for a in ALPHAS}
    return {a: float((guess == truth).mean()) for a, guess in guesses.items()}

  scores = [hits(a, x[b], label[b]) for a, b in folds(train.family[fit], FOLDS)]
  alpha = max(ALPHAS, key=lambda a: np.mean([s[a] for s in scores]))
  known = test.group >= 0
  truth = test.group[known]
  everything = np.arange(len(x))
  return {
    "probe_group": hits(everything, test.features[known], truth)[alpha],
    "probe_group_majority": float(np.bincount(truth).max() / len(truth)),
    "probe_alpha": alpha,
  }


def floors(
  train_source: Any, test_source: Any, described: bool = False
) -> dict[str, Any]:
  """Returns every floor of one split: i2t_r1 ... t2i_r10, chance, probe_group, n.

  Args:
    train_source: raw examples with image_bytes, captions, id, family, label_group.
    test_source: the same, of other families.
    described: read descriptors instead of pixels.
  """
  train, test = (read(s, described=described) for s in (train_source, test_source))
  return {
    "n_train": len(train.id),
    **retrieval_floor(train, test),
    **probe_floor(train, test),
  }


def style_floor(
  train_source: Any, test_source: Any, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
  """Returns i2t_r<k> of naming drawings by their nearest training drawing in pixels.

  A concept is as near as its nearest training drawing. Test drawings of concepts that
  training never drew are misses: nothing could name them.

  Args:
    train_source: raw examples with image_bytes, captions, family and id, and with key,
      the concept, where ids depend on the styles.
    test_source: the same concepts, drawn in another style.
  """
  train, test = read(train_source), read(test_source)
  concept = dict(zip(test.key, test.id.tolist()))
  # Concepts that are not asked for still compete: each is a wrong answer of its own.
  named = np.asarray([concept.get(k, -1 - i) for i, k in enumerate(train.key)])
  concepts, position = np.unique(named, return_inverse=True)
  mean = train.features.mean(axis=0)
  scores = unit(test.features - mean) @ unit(train.features - mean).T
  nearest = np.full((len(concepts), len(scores)), -np.inf, np.float32)
  np.maximum.at(nearest, position, scores.T)
  at = np.minimum(np.searchsorted(concepts, test.id), len(concepts) - 1)
  own = np.where(concepts[at] == test.id, nearest[at, np.arange(len(at))], -np.inf)
  rank = (nearest >= own - gallery.TIE).sum(axis=0) - 1
  out = {f"i2t_r{k}": float((rank < k).mean()) for k in ks}
  out |= {f"i2t_chance_r{k}": min(1.0, k / len(concepts)) for k in ks}
  drawn = float(np.isin(test.id, concepts).mean())
  return out | {"n": float(len(rank)), "concepts": float(len(concepts)), "drawn": drawn}


def results(
  runs: Sequence[Mapping[str, Any]], title: str, argv: Sequence[str] = ()
) -> dict[str, Any]:
  """Returns the figures of several splits in the form that tools.collect tabulates."""
  keys = [k for k, v in runs[0].items() if isinstance(v, int | float)]
  return {
    "title": title,
    "seeds": list(range(len(runs))),
    "metrics": {f"eval/retrieval/{k}": [r[k] for r in runs] for k in keys},
    "chosen": [r["chosen"] for r in runs],
    "made": [environment.describe() | {"command": " ".join([COMMAND, *argv])}],
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the floors of several family splits; prints and saves mean and spread."""
  parser = argparse.ArgumentParser(prog=COMMAND)
  parser.add_argument("--seeds", type=int, default=5, help="family splits")
  parser.add_argument("--out", help="JSON file of the results")
  parser.add_argument("--descriptors", action="store_true", help="instead of pixels")
  parser.add_argument("--styles", nargs=2, metavar=("TRAIN", "TEST"),
                      help="style floor instead, such as twemoji noto")  # fmt: skip
  args = parser.parse_args(argv)
  out: dict[str, Any]
  if args.styles:
    train, test = (source.Source(split="all", styles=(s,)) for s in args.styles)
    out = {"styles": args.styles, **style_floor(train, test)}
    print(json.dumps(out, indent=1))
  else:
    runs = []
    for seed in range(args.seeds):
      train, test = (source.Source(split=s, seed=seed) for s in ("train", "test"))
      runs.append(floors(train, test, args.descriptors))
      found = ", ".join(f"R@{k} {runs[-1][f'i2t_r{k}']:.3f}" for k in (1, 5, 10))
      print(f"split {seed}: image to text {found}", flush=True)
    read = "its wide path's descriptors" if args.descriptors else "24x24 pixels"
    words = sys.argv[1:] if argv is None else argv
    out = results(runs, f"floor: ridge on {read}", words)
    for key, found in out["metrics"].items():
      print(f"{key:36} {np.mean(found):8.3f} +- {np.std(found):.3f}")
  if args.out:
    pathlib.Path(args.out).write_text(json.dumps(out, indent=1) + "\n")
  return 0


if __name__ == "__main__":
  main()
