import json

from benchmarks import losses


def test_benchmark_writes_what_it_measured(tmp_path, capsys):
  out = tmp_path / "new" / "losses.json"
  sizes = {"batch": 64, "dim": 8, "tile": 16, "devices": 8, "repeats": 1}
  words = [w for k, v in sizes.items() for w in (f"--{k}", str(v))]
  losses.main([*words, "--out", str(out)])
  report = json.loads(out.read_text())
  rows = report["results"]
  assert {(r["loss"], r["strategy"]) for r in rows} == {
    (loss, s) for loss in losses.LOSSES for s in losses.STRATEGIES
  }
  assert all(r["temp_bytes_per_device"] > 0 and r["ms_median"] > 0 for r in rows)
  assert report["command"].startswith("python -m benchmarks.losses --batch 64")
  assert report["versions"]["jax"] and "device" in report
  assert len(capsys.readouterr().out.splitlines()) == len(rows) + 1
