import json

from benchmarks import losses


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
  assert report["versions"]["jax"] and "device" in report
  assert len(capsys.readouterr().out.splitlines()) >= len(rows)
