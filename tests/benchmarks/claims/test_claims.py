"""The command over a claim of a second's work; and what every claim keeps to."""

import dataclasses
import json
import pathlib

from matplotlib.figure import Figure
import pytest

from benchmarks.claims import __main__ as claims
from benchmarks.claims import dcl
from benchmarks.claims.shared import claim as claim_lib
from benchmarks.claims.shared import page, verdict
from benchmarks.claims.shared.claim import Claim, Measured
from benchmarks.claims.shared.verdict import Rule, Statement

ROOT = pathlib.Path(__file__).resolve().parents[3]
DONE = []


def settings(arm, seed):
  return {"step": {"up": 0.5 if arm == "new" else 0.1}, "seed": seed}


def measure(settings, workdir):
  DONE.append(settings)
  assert list(pathlib.Path(workdir).iterdir()) == []
  x = settings["seed"] * 0.01 + settings["step"]["up"]
  return Measured({"height": x}, {"curve": [0.0, x]})


TINY = Claim(
  title="Tiny",
  source="arXiv 0000.00000",
  about="Steps.",
  legend="Metres.",
  arms={"old": "small steps", "new": "large steps"},
  seeds=(0, 1, 2),
  settings=settings,
  varies=("step.up",),
  measure=measure,
  statements=(
    Statement(
      name="higher",
      text="Large steps lead higher",
      rules=(Rule(metric="height", arm="new", minus="old", at_least=0.2),),
    ),
  ),
  columns=(("height", "height, m"),),
  draw=lambda result: Figure(),
  choice={"aim": "High ones.", "pilots": ["0.3: too low"]},
)


@pytest.fixture
def tiny(monkeypatch):
  DONE.clear()
  monkeypatch.setattr(claims, "keys", lambda: ["tiny"])
  monkeypatch.setattr(claims, "find", lambda key: TINY)


def test_the_command_runs_judges_draws_and_goes_on_where_it_was(tiny, tmp_path, capsys):
  docs, work = tmp_path / "docs", tmp_path / "work"
  words = ["--docs", str(docs), "--work", str(work)]
  assert claims.main(["--all", *words]) == 0
  assert len(DONE) == 6 and DONE[0] == settings("old", 0)
  result = json.loads((docs / "results" / "claims" / "tiny.json").read_text())
  assert result["statements"][0]["verdict"] == verdict.HELD
  assert result["statements"][0]["rules"][0]["mean"] == pytest.approx(0.4)
  assert result["summary"]["new"]["height"]["mean"] == pytest.approx(0.51)
  assert result["runs"][-1]["arrays"]["curve"] == [0.0, pytest.approx(0.52)]
  assert "versions" in result["runs"][0]["made"]
  assert (docs / "figures" / "claims" / "tiny.png").stat().st_size > 0
  printed = capsys.readouterr().out
  assert "| new | 0.510 ± 0.010 |" in printed
  found = "height: new - old >= 0.2: 0.4 [0.4, 0.4] held"
  assert f"| Large steps lead higher | {found} | **held** |" in printed
  text = (docs / "claims" / "tiny.md").read_text()
  for line in ("- held: higher", "- not held: none", "- 0.3: too low"):
    assert line in text
  (work / "tiny" / "new_1.json").unlink()  # as if it had been interrupted there
  other = json.loads((work / "tiny" / "old_2.json").read_text())
  (work / "tiny" / "old_2.json").write_text(json.dumps(other | {"digest": "other"}))
  (work / "tiny" / "new_1").mkdir()
  (work / "tiny" / "new_1" / "half a checkpoint").write_text("")
  assert claims.main(["tiny", *words]) == 0
  assert DONE[6:] == [settings("new", 1), settings("old", 2)]
  again = json.loads((docs / "results" / "claims" / "tiny.json").read_text())
  assert again["statements"] == result["statements"]


def test_page_and_plot_come_from_the_json_without_a_run(tiny, tmp_path, capsys):
  words = ["--docs", str(tmp_path), "--work", str(tmp_path / "work")]
  assert claims.main(["tiny", *words]) == 0
  printed = capsys.readouterr().out
  text = tmp_path / "claims" / "tiny.md"
  before = text.read_text()
  text.unlink()
  assert claims.main(["tiny", "--write", *words]) == 0
  assert capsys.readouterr().out == printed and len(DONE) == 6
  assert text.read_text() == before
  assert claims.main(["--wave", "3", *words]) == 1
  assert "wave3.json" in capsys.readouterr().err
  (tmp_path / "systems").mkdir()
  listed = [{"key": "tiny"}, {"key": "not built"}]
  (tmp_path / "systems" / "wave3.json").write_text(json.dumps(listed))
  assert claims.main(["--wave", "3", "--write", *words]) == 0
  assert capsys.readouterr().out == printed


def test_a_claim_is_tuned_only_over_its_grid(tmp_path, capsys, monkeypatch):
  words = ["--tune", "--work", str(tmp_path)]
  assert claims.main(["symile", *words]) == 1
  assert "symile.py defines no GRID" in capsys.readouterr().err
  monkeypatch.setattr(dcl, "settings", lambda arm, seed, temperature: temperature)
  monkeypatch.setattr(
    dcl, "measure", lambda t: Measured(dict.fromkeys(dcl.MERIT, 1 - t))
  )
  assert claims.main(["dcl", *words]) == 0
  assert "TUNED = {'infonce': {'temperature': 0.1}" in capsys.readouterr().out


def test_one_seed_is_no_claim(tiny, tmp_path, capsys):
  words = ["--docs", str(tmp_path), "--work", str(tmp_path / "work")]
  assert claims.main(["tiny", "--seeds", "7", *words]) == 1
  assert "claims: tiny: 1 seeds: a spread needs two" in capsys.readouterr().err


def test_a_claim_whose_data_are_not_there_does_not_stop_the_others(
  monkeypatch, tmp_path, capsys
):
  def absent(settings, workdir):
    raise FileNotFoundError("get it by apt-get")

  DONE.clear()
  without = dataclasses.replace(TINY, measure=absent)
  monkeypatch.setattr(claims, "keys", lambda: ["far", "tiny"])
  monkeypatch.setattr(claims, "find", {"far": without, "tiny": TINY}.get)
  words = ["--docs", str(tmp_path / "docs"), "--work", str(tmp_path / "work")]
  assert claims.main(["--all", *words]) == 1
  shown = capsys.readouterr()
  assert "claims: far: get it by apt-get" in shown.err
  assert len(DONE) == 6 and "| **held** |" in shown.out
  assert [p.stem for p in (tmp_path / "docs" / "claims").iterdir()] == ["tiny"]


def test_a_misspelt_key_is_answered_with_its_neighbour(tmp_path, capsys):
  assert claims.main(["filp", "--work", str(tmp_path)]) == 1
  assert "did you mean filip?" in capsys.readouterr().err


def test_the_command_needs_a_key_or_all(capsys):
  for words in ([], ["limoe", "--all"], ["--all", "--wave", "1"]):
    with pytest.raises(SystemExit):
      claims.main(words)
    assert "there are: " in capsys.readouterr().err


@pytest.mark.parametrize("key", claims.keys())
def test_arms_differ_only_in_what_the_claim_is_about(key):
  claim = claims.find(key)
  assert len(claim.seeds) >= 3 and len(set(claim.seeds)) == len(claim.seeds)
  for seed in claim.seeds[:2]:
    flat = {arm: claim_lib.flat(claim.settings(arm, seed)) for arm in claim.arms}
    everywhere = set().union(*flat.values())
    differ = {
      k
      for k in everywhere
      if len({repr(f.get(k, "absent")) for f in flat.values()}) > 1
    }
    assert differ == set(claim.varies)
    assert len({repr(sorted(f.items())) for f in flat.values()}) == len(flat), (
      "two arms are the same"
    )


@pytest.mark.parametrize("key", claims.keys())
def test_rules_are_about_arms_and_say_what_is_claimed(key):
  claim = claims.find(key)
  assert claim.statements
  for statement in claim.statements:
    assert statement.text and statement.rules
    for rule in statement.rules:
      assert rule.arm in claim.arms and (not rule.minus or rule.minus in claim.arms)


RUN = sorted(p.stem for p in (ROOT / "docs" / "results" / "claims").glob("*.json"))


@pytest.mark.parametrize("key", RUN)
def test_the_page_and_the_verdicts_are_those_of_the_committed_runs(key):
  result = json.loads(claims.results(key, ROOT / "docs").read_text())
  fresh = claim_lib.collect(claims.find(key), result["runs"], key)
  assert json.loads(json.dumps(fresh)) == result, "rules changed after the run"
  assert (ROOT / "docs" / "figures" / "claims" / f"{key}.png").exists()
  assert (ROOT / "docs" / "claims" / f"{key}.md").read_text() == page.page(result)


@pytest.mark.parametrize("key", RUN)
def test_the_committed_runs_are_of_the_settings_that_the_claim_has_now(key):
  claim = claims.find(key)
  runs = json.loads(claims.results(key, ROOT / "docs").read_text())["runs"]
  stale = [
    f"{r['arm']}, seed {r['seed']}"
    for r in runs
    if r["digest"] != claim_lib.digest(claim.settings(r["arm"], r["seed"]))
  ]
  assert not stale, f"settings changed since: python -m benchmarks.claims {key}"
