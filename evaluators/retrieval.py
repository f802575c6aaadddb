"""Cross-modal retrieval with several positives per query, in both directions.

What is right, what a rank is and how ties count is written in evaluators/gallery.py.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools
import json
import math
from typing import Any, ClassVar

import numpy as np

from evaluators import bootstrap
from evaluators import context as context_lib
from evaluators import gallery as gallery_lib
from evaluators.context import Context, Embedded
from evaluators.gallery import Neighbours
from model.types import Params


def per_query(rank: np.ndarray, ks: Sequence[int] = (1, 5, 10)) -> dict[str, Any]:
  """Returns r<k> bool[q] and mrr f64[q]: of each query, what is averaged."""
  return {f"r{k}": rank < k for k in ks} | {"mrr": 1.0 / (rank + 1)}


def summarise(
  found: Neighbours, gallery: int, ks: Sequence[int] = (1, 5, 10), draws: int = 0
) -> dict[str, float]:
  """Returns r<k> (share of queries), median_rank (from 1), mrr and chance_r<k>.

  `gallery` is its number of items; chance is that of a random order; draws are
  resamples for intervals of r<k> and mrr, 0 for none.
  """
  metrics = bootstrap.means(per_query(found.rank, ks), draws)
  metrics["median_rank"] = float(np.median(found.rank + 1))
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


def first_of_each(ids: np.ndarray) -> np.ndarray:
  """Returns i64[u]: the first row of each id i32[n], in order of the rows."""
  return np.sort(np.unique(ids, return_index=True)[1])


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
    unique: modalities of which all examples of an id hold one item, such as the image
      of five captions: the first of them stands for all, as query and in the gallery.
    bootstrap: resamples for 95% intervals, <metric>_low and <metric>_high; 0: none.
  """

  version: ClassVar[int] = 1

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
  unique: tuple[str, ...] = ()
  bootstrap: int = 0

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
      limit=self.limit,
    )
    rows = np.arange(len(embedded.id))
    metrics, artifact, queries = self._measure(embedded, rows, modalities)
    if self.without:
      kept = rows[rows_without(embedded, self.without)[rows]]
      name = f"without_{'_'.join(dict.fromkeys(label for label, _ in self.without))}/"
      fewer, _, more = self._measure(embedded, kept, modalities)
      metrics |= {name + key: value for key, value in fewer.items()}
      queries |= {name + key: value for key, value in more.items()}
    source = json.dumps(dict(self.source or {}), default=list)
    artifact |= {"kind": "retrieval", "split": self.split, "source": source}
    context_lib.save(self.context, self.name, **artifact)
    if self.bootstrap:
      bootstrap.save(self.context, self.name, queries)
    return metrics

  def _measure(
    self, embedded: Embedded, rows: np.ndarray, modalities: Sequence[str]
  ) -> tuple[dict[str, float], dict[str, Any], dict[str, np.ndarray]]:
    """Returns metrics, the artifact and the values of each query, over some rows."""
    metrics, queries = {"n": float(len(rows))}, {}
    ids, index = embedded.id[rows], embedded.index[rows]
    artifact: dict[str, Any] = {"index": index, "id": ids}
    for pair in self.pairs:
      for a, b in (pair, pair[::-1]):
        name = direction(a, b, modalities)
        # Positions in `rows` of the queries and of the gallery.
        q, g = (
          first_of_each(ids) if m in self.unique else np.arange(len(rows))
          for m in (a, b)
        )
        found = gallery_lib.rank(
          embedded.z[a][rows[q]],
          embedded.z[b][rows[g]],
          ids[q],
          ids[g],
          mesh=self.context.mesh,
        )
        for key, value in summarise(found, len(g), self.ks, self.bootstrap).items():
          metrics[f"{name}_{key}"] = value
        for key, value in per_query(found.rank, self.ks).items():
          queries[f"{name}_{key}"] = value
        if self.unique:
          artifact[f"{name}_query"] = index[q]
        artifact[f"{name}_top"] = index[g][found.top]
        artifact[f"{name}_correct"] = ids[g][found.top] == ids[q][:, None]
        artifact[f"{name}_score"] = found.score
        artifact[f"{name}_rank"] = found.rank
    return metrics, artifact, queries
