"""docs/performance.md says what the committed reports say."""

import json
import pathlib
import re

from benchmarks import table

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPREAD = dict(median=1.0, q1=0.5, q3=1.5, min=0.1, max=2.0)


def test_the_page_shows_every_committed_report():
  page = (ROOT / "docs" / "performance.md").read_text()
  found = re.findall(r"<!-- results: ?(.*?) -->\n(.*?)<!-- end -->", page, re.DOTALL)
  assert len(found) == 1
  names, shown = found[0]
  files = [ROOT / name for name in names.split()]
  folder = ROOT / "benchmarks" / "results"
  assert {*files} == {*folder.glob("moe_*.json"), *folder.glob("step_*.json")}
  reports = [json.loads(file.read_text()) for file in files]
  assert shown.strip() == table.table(reports)


def test_a_cpu_is_judged_by_its_own_time_and_a_gpu_by_the_clock():
  row = dict(
    seconds=SPREAD,
    cpu_seconds=SPREAD | dict(median=3.0),
    achieved_tflops=0.5,
    share_of_matmul=0.25,
  )
  over = dict(seconds=SPREAD, cpu_seconds=SPREAD | dict(median=4.0))
  settings = dict(size="small", batch=8)
  report = dict(
    settings=settings,
    cores=1,
    results=dict(dense=row, gather=row | {"over_dense": over}),
  )
  dense, gather = table.rows(report)
  assert dense[0] == "dense, small, batch 8, 1 core" and dense[4] == ""
  assert (gather[1], gather[3], gather[4]) == ("3", "1", "4.00")
  ours = row | dict(cores=0, device="H100", over_open_clip=over)
  settings = dict(size="B/16", batch=256, overrides=["model.trunk.depth=6", "a.b=1"])
  report = dict(settings=settings, results=dict(ours=ours))
  (cells,) = table.rows(report)
  assert cells[0] == "ours, B/16 of 6 blocks, batch 256, H100"
  assert (cells[1], cells[4]) == ("1", "1.00")
