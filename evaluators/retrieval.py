"""Cross-modal retrieval with several positives per query, in both directions.

An item of the gallery is a positive of a query when their ids are equal. The rank of a
query is the number of negatives at least as similar to it as its best positive, so a
collapsed model, to which everything is equally similar, ranks last and not first.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import json
import math
from typing import Any

import numpy as np

from evaluators import context as context_lib
from evaluators.context import Context, Embedded
from model.types import Params

# Similarities nearer than this are ties: the same product computed at another place of
# a matrix multiplication differs by a few units of f32's last digit.
TIE = 1e-6


@dataclasses.dataclass(frozen=True)
class Neighbours:
  """What each query found.

  Attributes:
    rank: i64[n], 0-based and pessimistic.
    top: i64[n, k], positions in the gallery, the most similar first.
    score: f32[n, k], their similarities.
    positives: i64[n], how many items of the gallery are right.
  """

  rank: np.ndarray
  top: np.ndarray
  score: np.ndarray
  positives: np.ndarray


def search(
  queries: np.ndarray,
  gallery: np.ndarray,
  query_id: np.ndarray,
  gallery_id: np.ndarray,
  *,
  k: int = 5,
  tile: int = 1024,
) -> Neighbours:
  """Ranks a gallery for every query; memory is O(tile * len(gallery)).

  Args:
    queries: f32[n, d], unit norm.
    gallery: f32[m, d], unit norm.
    query_id: i32[n].
    gallery_id: i32[m].
    k: nearest items to return, at most m.
    tile: queries compared at a time.

  Raises:
    ValueError: a query without a positive in the gallery, or embeddings not finite.
  """
  for name, x in (("query", queries), ("gallery", gallery)):
    if not np.isfinite(x).all():
      raise ValueError(f"{name} embeddings hold NaN or infinity: the model diverged")
  k = min(k, len(gallery))
  parts = []
  for start in range(0, len(queries), tile):
    part = slice(start, start + tile)
    similarity = queries[part] @ gallery.T  # f32[tile, m]
    positive = query_id[part, None] == gallery_id[None, :]
    if not positive.any(axis=1).all():
      lost = query_id[part][~positive.any(axis=1)][:5]
      raise ValueError(f"no item of the gallery has the ids {lost.tolist()} of queries")
    best = np.where(positive, similarity, -np.inf).max(axis=1, keepdims=True)
    rank = ((similarity >= best - TIE) & ~positive).sum(axis=1)
    some = np.argpartition(-similarity, k - 1, axis=1)[:, :k]
    # Stable and from sorted positions: ties come out the same on every machine.
    some.sort(axis=1)
    order = np.argsort(-np.take_along_axis(similarity, some, 1), axis=1, kind="stable")
    top = np.take_along_axis(some, order, 1)
    score = np.take_along_axis(similarity, top, 1)
    parts.append((rank, top, score, positive.sum(axis=1)))
  rank, top, score, positives = (np.concatenate(x) for x in zip(*parts))
  return Neighbours(rank, top, score, positives)


def summarise(
  found: Neighbours, gallery: int, ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
  """Returns r<k> (share of queries), median_rank (from 1), mrr and chance_r<k>.

  `gallery` is its number of items; chance is that of a random order.
  """
  metrics = {f"r{k}": float((found.rank < k).mean()) for k in ks}
  metrics["median_rank"] = float(np.median(found.rank + 1))
  metrics["mrr"] = float((1.0 / (found.rank + 1)).mean())
  for k in ks:
    metrics[f"chance_r{k}"] = chance(found.positives, gallery, k)
  return metrics


def chance(positives: np.ndarray, gallery: int, k: int) -> float:
  """Returns the recall at k of a random order: mean of 1 - C(m - p, k) / C(m, k)."""
  k = min(k, gallery)
  total = math.comb(gallery, k)
  counts, times = np.unique(positives, return_counts=True)
  hit = [1.0 - math.comb(gallery - int(p), k) / total for p in counts]
  return float(np.average(hit, weights=times))


def direction(a: str, b: str, modalities: Sequence[str]) -> str:
  """Returns "i2t" for image to text; whole names where first letters collide."""
  letters = [m[0] for m in modalities]
  clash = len(set(letters)) < len(letters)
  return f"{a}2{b}" if clash else f"{a[0]}2{b[0]}"


def rows_without(embedded: Embedded, excluded: Sequence[tuple[str, int]]) -> np.ndarray:
  """Returns bool[n]: rows that bear none of the excluded (label, value)s.

  Raises:
    ValueError: a label that the source does not have.
  """
  keep = np.ones(len(embedded.id), bool)
  for label, value in excluded:
    if label not in embedded.labels:
      raise ValueError(
        f"without={label!r} is no label of the source, which has "
        f"{sorted(embedded.labels)}"
      )
    keep &= embedded.labels[label] != value
  if not keep.any():
    raise ValueError(f"without={tuple(excluded)} leaves no example")
  return keep


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Multi-positive R@k, median rank and reciprocal rank of each pair of modalities.

  Attributes:
    context: mesh, encode function and recipe.
    name: of the artifact.
    split: of config.data.source.
    pairs: modalities to match; each in both directions.
    without: ((label, value), ...): results are given over all examples and, from the
      same embeddings, again without those (queries and gallery), as
      without_<label>/...
    ks: recalls at these ranks.
    batch_size: global; 0 is config.batch_size.
    source: changes to the source's options, such as a drawing style or a language.
    limit: examples, the first ones; 0 is all.
  """

  context: Context
  _: dataclasses.KW_ONLY
  name: str = "retrieval"
  split: str = "test"
  pairs: tuple[tuple[str, str], ...] = (("image", "text"),)
  without: tuple[tuple[str, int], ...] = ()
  ks: tuple[int, ...] = (1, 5, 10)
  batch_size: int = 0
  source: Mapping[str, Any] | None = None
  limit: int = 0

  def run(self, params: Params) -> dict[str, float]:
    """Returns i2t_r1 and so on; saves the nearest neighbours for the report."""
    modalities = tuple(dict.fromkeys(itertools.chain(*self.pairs)))
    embedded = context_lib.embed(
      self.context,
      params,
      split=self.split,
      modalities=modalities,
      batch_size=self.batch_size,
      options=self.source,
    )
    rows = np.arange(len(embedded.id))[: self.limit or None]
    metrics, artifact = self._measure(embedded, rows, modalities)
    if self.without:
      kept = rows[rows_without(embedded, self.without)[rows]]
      name = "_".join(dict.fromkeys(label for label, _ in self.without))
      fewer, _ = self._measure(embedded, kept, modalities)
      metrics |= {f"without_{name}/{key}": value for key, value in fewer.items()}
    source = json.dumps(dict(self.source or {}), default=list)
    artifact |= {"kind": "retrieval", "split": self.split, "source": source}
    context_lib.save(self.context, self.name, **artifact)
    return metrics

  def _measure(
    self, embedded: Embedded, rows: np.ndarray, modalities: Sequence[str]
  ) -> tuple[dict[str, float], dict[str, Any]]:
    metrics = {"n": float(len(rows))}
    ids, index = embedded.id[rows], embedded.index[rows]
    artifact: dict[str, Any] = {"index": index, "id": ids}
    for pair in self.pairs:
      for a, b in (pair, pair[::-1]):
        name = direction(a, b, modalities)
        found = search(embedded.z[a][rows], embedded.z[b][rows], ids, ids)
        for key, value in summarise(found, len(rows), self.ks).items():
          metrics[f"{name}_{key}"] = value
        artifact[f"{name}_top"] = index[found.top]
        artifact[f"{name}_correct"] = ids[found.top] == ids[:, None]
        artifact[f"{name}_score"] = found.score
        artifact[f"{name}_rank"] = found.rank
    return metrics, artifact
