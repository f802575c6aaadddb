"""benchmarks.packing counts what it says, and the page shows what was measured."""

import argparse
import json
import pathlib

import numpy as np

from benchmarks import packing
from configs import clip_emoji
from model.encoders import count, towers

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_savings_are_of_the_fewest_slots_for_a_cut():
  lengths = np.r_[np.full(31, 4), 16]
  ids = (np.arange(16) < lengths[:, None]).astype(np.int32)
  found = packing.savings(ids)
  assert found["length"] == 16 and found["mean"] == 4.38 and found["full"] == 0.0312
  (row,) = found["packed"]
  # A bin of 16 has room for the long one; 140 tokens need 5 slots an example.
  assert (row["tokens"], row["rows"], row["cut"]) == (5, 4, 0)
  assert row["filled"] == 0.875 and row["saved"] == 0.6875
  assert packing.packed_to(lengths, 65, 2) is None  # no bin of 32 rows holds it


def test_arms_differ_in_packing_alone():
  args = argparse.Namespace(batch=32, width=16, depth=1)
  c = packing.config_of(args, 16)
  assert not any(m.pack for m in towers.build(c.model).modalities)
  c.model.modalities.text.pack.update(dict(tokens=5, rows=4, group=packing.GROUP))
  assert any(m.pack for m in towers.build(c.model).modalities)


def test_an_emoji_step_is_mostly_pictures():
  c = clip_emoji.get_config()
  whole = count.flops_per_example(c.model)
  c.model.modalities.text.pack.tokens = 9
  saved = sum(whole.values()) - sum(count.flops_per_example(c.model).values())
  assert round(whole["text"] / sum(whole.values()), 2) == 0.38  # docs/mixtures.md
  assert round(saved / sum(whole.values()), 2) == 0.16


def test_the_page_shows_what_was_measured():
  report = json.loads((ROOT / "benchmarks/results/packing_cpu.json").read_text())
  page = (ROOT / "docs/mixtures.md").read_text()
  shown = page.partition("packing_cpu.json -->\n")[2].partition("\n<!-- end -->")[0]
  assert shown == packing.table(report)
