"""How long ranking a large gallery takes, and what memory it needs.

python -m benchmarks.retrieval --items 1000000 --dim 256 --queries 4096 \\
  --out docs/results/retrieval_1m.json

Random unit vectors; each query is near one item, its positive. A few queries are ranked
again by the numpy search in one piece, and must come out the same.
"""

import argparse
from collections.abc import Sequence
import json
import pathlib
import time
from typing import Any

import jax
import numpy as np

from evaluators import gallery
from sharding import mesh as meshes
from training import environment

CHECKED = 16  # queries that are ranked twice


def unit(x: np.ndarray) -> np.ndarray:
  """Returns x f32[n, d] at unit norm."""
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def data(items: int, queries: int, dim: int, noise: float = 2.5) -> tuple[Any, ...]:
  """Returns (queries, gallery, query_id, gallery_id)."""
  rng = np.random.default_rng(0)
  g = unit(rng.standard_normal((items, dim), np.float32))
  query_id = rng.choice(items, queries, replace=False).astype(np.int32)
  q = g[query_id] + noise / dim**0.5 * rng.standard_normal((queries, dim), np.float32)
  return unit(q), g, query_id, np.arange(items, dtype=np.int32)


def measure(items: int, queries: int, dim: int) -> dict[str, Any]:
  """Returns seconds, memory and recall of one search.

  Raises:
    ValueError: ranks that are not those of the search in one piece.
  """
  q, g, query_id, gallery_id = data(items, queries, dim)
  mesh = meshes.make(dict(data=-1))
  before = _memory(reset=True)
  started, busy = time.perf_counter(), time.process_time()
  found = gallery.stream(q, g, query_id, gallery_id, mesh=mesh, k=10)
  wall, busy = time.perf_counter() - started, time.process_time() - busy
  more = _memory() - before
  some = slice(CHECKED)
  want = gallery.search(q[some], g, query_id[some], gallery_id, k=10, tile=CHECKED)
  if not (want.rank == found.rank[some]).all():
    raise ValueError(f"ranks {found.rank[some]} by tiles, {want.rank} in one piece")
  return {
    "items": items,
    "queries": queries,
    "dim": dim,
    "devices": jax.device_count(),
    "seconds": wall,
    "cpu_seconds": busy,
    "gallery_bytes": g.nbytes,
    "all_similarities_bytes": 4 * items * queries,
    "peak_bytes_more": more,
    "r1": float((found.rank < 1).mean()),
    "r10": float((found.rank < 10).mean()),
  }


def _memory(reset: bool = False) -> int:
  """Returns the most bytes that this process had since the last reset (Linux)."""
  own = pathlib.Path("/proc/self")
  if reset:
    (own / "clear_refs").write_text("5")
  found = dict(x.split(":", 1) for x in (own / "status").read_text().splitlines())
  return 1024 * int(found["VmHWM"].split()[0])


def main(argv: Sequence[str] | None = None) -> None:
  """Measures, prints and writes."""
  parser = argparse.ArgumentParser(
    prog="python -m benchmarks.retrieval",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument("--items", type=int, default=1_000_000)
  parser.add_argument("--queries", type=int, default=4096)
  parser.add_argument("--dim", type=int, default=256)
  parser.add_argument("--out", default="", help="the JSON to write")
  flags = parser.parse_args(argv)
  found = measure(flags.items, flags.queries, flags.dim)
  found |= {"made": environment.describe()}
  found["made"]["command"] = (
    f"python -m benchmarks.retrieval --items {flags.items} --dim {flags.dim} "
    f"--queries {flags.queries}"
  )
  text = json.dumps(found, indent=1)
  print(text)
  if flags.out:
    pathlib.Path(flags.out).write_text(text + "\n")


if __name__ == "__main__":
  main()
