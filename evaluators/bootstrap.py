"""Confidence intervals of means over queries, by the percentile bootstrap.

Queries are drawn with replacement (Efron 1979; percentiles of the means). What is drawn
depends on the seed and the number of queries alone: metrics of one evaluation, and
models evaluated on the same queries, meet the same resamples, so that their differences
are paired. The interval speaks of other queries, not of other seeds of training.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath
import numpy as np

from evaluators import context as context_lib
from evaluators.context import Context

LOW, HIGH = "_low", "_high"  # end the names of an interval's ends
LEVEL = 0.95
PER_QUERY = "per_query"  # ends the names of artifacts with the values of each query


def resamples(n: int, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
  """Yields i64[n], how often each of n queries is drawn, `draws` times."""
  rng = np.random.default_rng((seed, n))
  for _ in range(draws):
    yield np.bincount(rng.integers(n, size=n), minlength=n)


def draw_means(values: np.ndarray, draws: int, seed: int = 0) -> np.ndarray:
  """Returns f64[draws, m]: the means of values [n, m] in each resample."""
  x = np.ascontiguousarray(values.T, np.float64)
  counts = resamples(len(values), draws, seed)
  return np.stack([x @ count for count in counts]) / len(values)


def means(
  values: Mapping[str, np.ndarray], draws: int = 0, seed: int = 0
) -> dict[str, float]:
  """Returns the mean of each metric and, with draws, <name>_low and <name>_high.

  Args:
    values: metric -> [n], the value of each query; one n for all.
    draws: resamples; 0 gives no interval.
    seed: of the resamples.

  Raises:
    ValueError: no queries.
  """
  if not all(map(len, values.values())):
    raise ValueError("a mean over queries needs at least one query, got none")
  out = {k: float(v.mean(dtype=np.float64)) for k, v in values.items()}
  if draws and values:
    drawn = draw_means(np.stack(list(values.values()), axis=1), draws, seed)
    for name, column in zip(values, drawn.T):
      out[name + LOW], out[name + HIGH] = interval(column)
  return out


def interval(drawn: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
  """Returns the percentiles of drawn f64[draws] that enclose `level` of it."""
  tail = (1 - level) / 2
  low, high = np.quantile(drawn, (tail, 1 - tail))
  return float(low), float(high)


def difference(
  a: np.ndarray, b: np.ndarray, draws: int, seed: int = 0
) -> dict[str, float]:
  """Returns {"mean", "low", "high"} of mean(a - b) over the same queries, [n] each.

  Raises:
    ValueError: of different numbers of queries.
  """
  if a.shape != b.shape:
    raise ValueError(
      f"a paired difference needs the same queries, got {a.shape} and {b.shape}"
    )
  change = a.astype(np.float64) - b
  low, high = interval(draw_means(change[:, None], draws, seed)[:, 0])
  return {"mean": float(change.mean()), "low": low, "high": high}


def compared(
  here: str, there: str, names: Sequence[str], draws: int
) -> dict[str, dict[str, float]]:
  """Returns <evaluator>/<metric> -> `difference` of two evaluations' artifacts.

  Args:
    here: a folder of artifacts.
    there: the one that is subtracted.
    names: of evaluators.
    draws: resamples.

  Raises:
    ValueError: nothing in common, or other queries there.
  """
  out = {}
  for name in names:
    a, b = (_load(folder, name) for folder in (here, there))
    for key in sorted(a.keys() & b.keys() - {"kind"}):
      if a[key].shape != b[key].shape:
        raise ValueError(
          f"{name}/{key}: {len(a[key])} queries here, {len(b[key])} in {there}: "
          "compare evaluations of the same split and options"
        )
      out[f"{name}/{key}"] = difference(a[key], b[key], draws)
  if not out:
    raise ValueError(
      f"{there} has no values per query of {list(names)}: give the JSON of another "
      "evaluation with these evaluators, its artifacts beside it"
    )
  return out


def save(context: Context, name: str, values: Mapping[str, np.ndarray]) -> None:
  """Writes the values of each query of an evaluator, for `compared`."""
  arrays = {k: v.astype(np.float32) for k, v in values.items()}
  context_lib.save(context, f"{name}_{PER_QUERY}", kind=PER_QUERY, **arrays)


def _load(folder: str, name: str) -> dict[str, Any]:
  path = epath.Path(folder) / f"{name}_{PER_QUERY}.npz"
  if not path.exists():
    return {}
  with path.open("rb") as f, np.load(f) as arrays:
    return dict(arrays)
