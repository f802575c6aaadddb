"""The shape of the embedding space: alignment, uniformity, modality gap, rank, hubs.

A contrastive model can fall ill while its loss looks fine; these say how. Alignment
and uniformity are those of arXiv 2005.10242 (eq. 1 and 2), the gap that of arXiv
2203.02053, the effective rank RankMe's (arXiv 2210.02885, eq. 1).
"""

from collections.abc import Mapping
import dataclasses
import itertools
from typing import Any

import numpy as np

from evaluators import context as context_lib
from evaluators.context import Context
from model.types import Params


def alignment(x: np.ndarray, y: np.ndarray) -> float:
  """Returns mean ||x_i - y_i||^2 of unit x, y f32[n, d]: 0 is perfect, 2 random."""
  return float(np.sum((x - y) ** 2, axis=-1).mean())


def uniformity(x: np.ndarray, t: float = 2.0, tile: int = 1024) -> float:
  """Returns log mean exp(-t ||x_i - x_j||^2) over i != j of x f32[n, d], unit norm.

  0 is collapsed; an even spread over a sphere of many dimensions nears -2 t.

  Raises:
    ValueError: fewer than two points.
  """
  n = len(x)
  if n < 2:
    raise ValueError(f"uniformity needs two points, got {n}")
  total = 0.0
  for start in range(0, n, tile):
    # ||a - b||^2 = 2 - 2 a.b for unit vectors
    similarity = np.minimum(x[start : start + tile] @ x.T, 1.0)
    kernel = np.exp(2.0 * t * (similarity - 1.0)).astype(np.float64)
    inside = np.arange(len(kernel))
    kernel[inside, start + inside] = 0.0
    total += kernel.sum()
  return float(np.log(total / (n * (n - 1))))


def modality_gap(x: np.ndarray, y: np.ndarray) -> float:
  """Returns the distance between the centroids of x [n, d] and y [m, d], in 0..2."""
  return float(np.linalg.norm(x.mean(axis=0) - y.mean(axis=0)))


def effective_rank(x: np.ndarray) -> float:
  """Returns exp of the entropy of the normalised singular values of x [n, d], 1..d."""
  s = np.linalg.svd(x.astype(np.float64), compute_uv=False)
  p = s / max(s.sum(), 1e-12)
  p = p[p > 0]
  return float(np.exp(-np.sum(p * np.log(p))))


def hubness(
  queries: np.ndarray, gallery: np.ndarray, k: int = 10, tile: int = 1024
) -> dict[str, float]:
  """Returns how unevenly a gallery f32[m, d] is found by queries f32[n, d], unit norm.

  "skew": the skewness of N_k, how often an item is among the k nearest of a query: 0
  where all are found alike, large where a few hubs are near to everything (Radovanovic
  et al. 2010, JMLR 11, eq. 1). "never": the share of items that no query finds. Of
  equally near items the first ones count.

  Raises:
    ValueError: no queries or no items.
  """
  if not len(queries) or not len(gallery):
    raise ValueError(f"hubness needs points, got {len(queries)} and {len(gallery)}")
  k, times = min(k, len(gallery)), np.zeros(len(gallery))
  for start in range(0, len(queries), tile):
    similarity = queries[start : start + tile] @ gallery.T
    near = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    times += np.bincount(near.ravel(), minlength=len(gallery))
  spread = times.std()
  skew = ((times - times.mean()) ** 3).mean() / spread**3 if spread else 0.0
  return {"skew": float(skew), "never": float((times == 0).mean())}


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Uniformity and effective rank of each modality; alignment, gap, hubs of each pair.

  Attributes:
    context: mesh, encode function and recipe.
    name: unused; every evaluator has one.
    split: of config.data.source.
    modalities: to look at; () is all.
    limit: examples, evenly spaced over the split; uniformity costs its square.
    neighbours: k of hubness, of which there is one in either direction.
    batch_size: global; 0 is config.batch_size.
    source: changes to the source's options.
  """

  context: Context
  _: dataclasses.KW_ONLY
  name: str = "health"
  split: str = "test"
  modalities: tuple[str, ...] = ()
  limit: int = 8192
  neighbours: int = 10
  batch_size: int = 0
  source: Mapping[str, Any] | None = None

  def run(self, params: Params) -> dict[str, float]:
    """Returns uniformity/<m>, alignment/<a>_<b>, hubness/<a>_<b> and so on."""
    embedded = context_lib.embed(
      self.context,
      params,
      split=self.split,
      modalities=self.modalities,
      batch_size=self.batch_size,
      options=self.source,
    )
    n = len(embedded.id)
    rows = np.unique(np.linspace(0, n - 1, min(n, self.limit)).astype(int))
    z = {m: x[rows] for m, x in sorted(embedded.z.items())}
    metrics = {}
    for m, x in z.items():
      metrics[f"uniformity/{m}"] = uniformity(x)
      metrics[f"effective_rank/{m}"] = effective_rank(x)
    for a, b in itertools.combinations(z, 2):
      metrics[f"alignment/{a}_{b}"] = alignment(z[a], z[b])
      metrics[f"modality_gap/{a}_{b}"] = modality_gap(z[a], z[b])
    for a, b in itertools.permutations(z, 2):  # a asks, b is found
      hubs = hubness(z[a], z[b], self.neighbours)
      metrics[f"hubness/{a}_{b}"] = hubs["skew"]
      metrics[f"never_found/{a}_{b}"] = hubs["never"]
    return metrics
