import json
import pathlib
import re

import pytest

from tests.tools import synthetic
from tools import collect

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_runs_become_one_file_and_one_row(tmp_path):
  workdirs = []
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    synthetic.write(tmp_path / name)
    workdirs.append(str(tmp_path / name))
  out = tmp_path / "out.json"
  assert collect.main([*workdirs, "--title", "Two", "--out", str(out)]) == 0
  result = json.loads(out.read_text())
  values = result["metrics"]["eval/retrieval/i2t_r10"]
  assert len(values) == 2 and len(result["made"]) == 2
  assert "jax" in result["made"][0]["versions"]
  text = collect.table([result])
  assert f"{values[0]:.3f} ± 0.000" in text and "| Two, without flags |" in text


def test_runs_of_two_recipes_are_refused(tmp_path, capsys):
  for name in ("a", "b"):
    (tmp_path / name).mkdir()
    synthetic.write(tmp_path / name)
  config = json.loads((tmp_path / "b" / "config.json").read_text())
  (tmp_path / "b" / "config.json").write_text(json.dumps(config | {"name": "other"}))
  workdirs = [str(tmp_path / "a"), str(tmp_path / "b")]
  with pytest.raises(ValueError, match="different recipes"):
    collect.collect(workdirs, "x")
  assert collect.main([*workdirs, "--out", str(tmp_path / "x.json")]) == 1
  assert "collect: runs of different recipes" in capsys.readouterr().err


def test_a_file_of_another_kind_has_no_table(tmp_path, capsys):
  path = tmp_path / "x.json"
  for text, complaint in (("{}", "tools.collect wrote"), ("a", "is not JSON")):
    path.write_text(text)
    assert collect.main(["--table", str(path)]) == 1
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("page", ["README.md", "docs/convert.md"])
def test_a_page_shows_what_the_committed_results_say(page):
  text = (ROOT / page).read_text()
  blocks = re.findall(r"<!-- results: (.*?) -->\n(.*?)\n<!-- end -->", text, re.S)
  assert blocks, "the page has no results table"
  for names, shown in blocks:
    files = [ROOT / name for name in names.split()]
    assert shown == collect.table([json.loads(f.read_text()) for f in files])
