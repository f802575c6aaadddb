"""The benchmark of large galleries runs, checks itself, and is quoted truly."""

import json
import pathlib

import numpy as np
import pytest

from benchmarks import retrieval
from evaluators import gallery

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def test_a_small_gallery(monkeypatch):
  found = retrieval.measure(items=300, queries=40, dim=8)
  assert found["items"] == 300 and 0 < found["r1"] <= found["r10"] <= 1
  wrong = gallery.stream

  def off(*args, **options):
    out = wrong(*args, **options)
    return gallery.Neighbours(out.rank + 1, out.top, out.score, out.positives)

  monkeypatch.setattr(gallery, "stream", off)
  with pytest.raises(ValueError, match="by tiles"):
    retrieval.measure(items=300, queries=40, dim=8)


def test_the_page_quotes_what_was_measured():
  found = json.loads((DOCS / "results" / "retrieval_1m.json").read_text())
  page = " ".join((DOCS / "evaluate.md").read_text().split())
  assert found["items"] == 1_000_000 and found["queries"] == 4096
  assert f"{found['cpu_seconds']:.0f} CPU-seconds" in page
  assert f"{found['peak_bytes_more'] / 2**30:.1f} GiB besides the data" in page
  whole = np.float64(found["all_similarities_bytes"]) / 2**30
  assert f"{whole:.1f} GiB" in page
