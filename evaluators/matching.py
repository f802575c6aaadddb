"""Retrieval by the probability that two Gaussians match, and how sure a model is.

PCME's (arXiv 2101.05068, eq. 2): the mean over J x J draws of the two sides of exp(s) /
(exp(s) + exp(-s)), with s = c - t * distance, and t and c as the loss learned them. For
models whose head gives a variance ("probabilistic"); `retrieval` compares their means.

Axis letters: n queries, m items, J draws of each, d embedding.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import itertools
from typing import Any, ClassVar

import numpy as np

from evaluators import bootstrap, retrieval
from evaluators import context as context_lib
from evaluators.context import Context
from model.types import Params

_NEAR = 1e-3  # as in model/losses/pcme.py: added to a distance, squared


def probability(
  a: np.ndarray, b: np.ndarray, scale: float, shift: float, tile: int = 64
) -> np.ndarray:
  """Returns f64[n, m], the match probabilities; memory is O(tile * J * m * J).

  Args:
    a: f32[n, J, d], the draws of each query.
    b: f32[m, J, d], those of each item.
    scale: t.
    shift: c.
    tile: queries compared at a time.
  """
  (m, draws, d), out = b.shape, []
  y = b.reshape(m * draws, d).astype(np.float64)
  for start in range(0, len(a), tile):
    x = a[start : start + tile].reshape(-1, d).astype(np.float64)
    square = (x * x).sum(1)[:, None] + (y * y).sum(1) - 2 * x @ y.T
    s = shift - scale * np.sqrt(np.maximum(square, 0) + _NEAR**2)
    p = 1 / (1 + np.exp(np.minimum(-2 * s, 700.0)))
    out.append(p.reshape(-1, a.shape[1], m, draws).mean(axis=(1, 3)))
  return np.concatenate(out)


def draw(
  mean: np.ndarray, log_var: np.ndarray, draws: int, rng: np.random.Generator
) -> np.ndarray:
  """Returns f32[n, J, d]: draws around mean f32[n, d] with log_var f32[n, d]."""
  noise = rng.standard_normal((len(mean), draws, mean.shape[1]), np.float32)
  return mean[:, None] + np.exp(log_var / 2)[:, None] * noise


def ranks(p: np.ndarray, query_id: np.ndarray, gallery_id: np.ndarray) -> np.ndarray:
  """Returns i64[n]: negatives at least as probable as the best positive; p [n, m]."""
  positive = query_id[:, None] == gallery_id[None]
  best = np.where(positive, p, -1.0).max(axis=1, keepdims=True)
  return ((p >= best) & ~positive).sum(axis=1)


def learned(params: Any) -> tuple[float, float]:
  """Returns t and c of the loss "pcme", wherever the objective keeps them.

  Raises:
    ValueError: there are none, or of several losses.
  """
  found = list(_find(params))
  if len(found) != 1:
    raise ValueError(
      f"matching needs the scale and shift of one loss 'pcme', found {len(found)}: set "
      "its options scale and shift, or drop it from config.evaluators"
    )
  return found[0]


def _find(tree: Any) -> Iterator[tuple[float, float]]:
  if not isinstance(tree, Mapping):
    return
  if {"log_scale", "shift"} <= tree.keys():
    log_scale, shift = (
      float(context_lib.to_numpy(tree[key])) for key in ("log_scale", "shift")
    )
    yield float(np.exp(log_scale)), shift
  for key in sorted(tree):
    yield from _find(tree[key])


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """R@k by match probability of each pair of modalities, and the deviations.

  Attributes:
    context: mesh, encode function and recipe.
    name: of the results.
    split: of config.data.source.
    pairs: modalities to match; each in both directions.
    ks: recalls at these ranks.
    draws: of each Gaussian, J.
    seed: of the draws.
    limit: examples, the first ones; all pairs of their draws are compared.
    scale: t of the loss; 0 takes the learned one.
    shift: c of the loss, where scale is given.
    batch_size: global; 0 is config.batch_size.
    source: changes to the source's options.
    bootstrap: resamples for 95% intervals, <metric>_low and <metric>_high; 0: none.
  """

  version: ClassVar[int] = 1

  context: Context
  _: dataclasses.KW_ONLY
  name: str = "matching"
  split: str = "test"
  pairs: tuple[tuple[str, str], ...] = (("image", "text"),)
  ks: tuple[int, ...] = (1, 5, 10)
  draws: int = 7
  seed: int = 0
  limit: int = 1000
  scale: float = 0.0
  shift: float = 0.0
  batch_size: int = 0
  source: Mapping[str, Any] | None = None
  bootstrap: int = 0

  def run(self, params: Params) -> dict[str, float]:
    """Returns i2t_r1 and so on; std/<m>; and match/<a>_<b>, of the true pairs.

    i2t_sure_r1 and i2t_unsure_r1 are of the half of the queries with the smaller
    deviations, and of the others.

    Raises:
      ValueError: a model without variances, or none or several losses "pcme".
    """
    scale, shift = (self.scale, self.shift) if self.scale else learned(params)
    modalities = tuple(dict.fromkeys(itertools.chain(*self.pairs)))
    embedded = context_lib.embed(
      self.context,
      params,
      split=self.split,
      modalities=modalities,
      batch_size=self.batch_size,
      options=self.source,
      limit=self.limit,
      read="gaussians",
    )
    log_var = {m: embedded.z[f"{m}_log_var"] for m in modalities}
    rng = np.random.default_rng(self.seed)
    z = {m: draw(embedded.z[m], log_var[m], self.draws, rng) for m in modalities}
    metrics = {"n": float(len(embedded.id))}
    metrics |= {f"std/{m}": float(np.exp(v / 2).mean()) for m, v in log_var.items()}
    queries: dict[str, np.ndarray] = {}
    for a, b in self.pairs:
      p = probability(z[a], z[b], scale, shift)
      metrics[f"match/{a}_{b}"] = float(np.diagonal(p).mean())
      for ask, find, table in ((a, b, p), (b, a, p.T)):
        name = retrieval.direction(ask, find, modalities)
        rank = ranks(table, embedded.id, embedded.id)
        found = retrieval.per_query(rank, self.ks)
        queries |= {f"{name}_{key}": value for key, value in found.items()}
        order = np.argsort(log_var[ask].mean(axis=1), kind="stable")
        for half, rows in zip(("sure", "unsure"), np.array_split(order, 2)):
          metrics[f"{name}_{half}_r1"] = float((rank[rows] < 1).mean())
    metrics |= bootstrap.means(queries, self.bootstrap)
    if self.bootstrap:
      bootstrap.save(self.context, self.name, queries)
    return metrics
