import json
import pathlib
import re

from benchmarks import losses

ROOT = pathlib.Path(__file__).resolve().parents[3]


def test_benchmark_writes_what_it_measured(tmp_path, capsys):
  out = tmp_path / "new" / "losses.json"
  words = ["--losses", "siglip", "vicreg", "--batch", "64", "128", "--dim", "8"]
  words += ["--tile", "16", "--devices", "8", "--time", "64", "--repeats", "1"]
  losses.main([*words, "--out", str(out)])
  report = json.loads(out.read_text())
  rows = report["results"]
  known = {("siglip", s) for s in losses.STRATEGIES} | {("vicreg", "-")}
  assert {(r["loss"], r["strategy"]) for r in rows} == known
  assert all(r["temp_bytes"] > 0 for r in rows)
  assert all(("ms" in r) == (r["batch"] == 64) for r in rows)
  slopes = {r["strategy"]: r["slope"] for r in rows if r["batch"] == 128}
  assert slopes["dense"] > 1.5 > slopes["ring"]
  assert report["command"].startswith("python -m benchmarks.losses --losses siglip")
  assert "jax" in report["versions"] and "device" in report
  assert len(capsys.readouterr().out.splitlines()) >= len(rows)
  losses.main(["--table", str(out)])
  first, _, *lines = capsys.readouterr().out.splitlines()
  assert first == "| loss | devices | batch | dense | tiled | ring | no strategies |"
  assert len(lines) == 2 and lines[0].startswith("| siglip | 8 | 128 |")


def test_the_page_shows_what_was_measured():
  text = (ROOT / "docs" / "losses.md").read_text()
  blocks = re.findall(r"<!-- losses: (.*?) -->\n(.*?)\n<!-- end -->", text, re.S)
  assert len(blocks) == 3
  for files, shown in blocks:
    reports = [json.loads((ROOT / file).read_text()) for file in files.split()]
    assert shown == losses.table(reports)
