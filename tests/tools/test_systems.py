"""The index of the methods says what recipes and claims say, and links to what is."""

import json
import re

import pytest

from tools import systems

METHOD = dict(
  title="A Paper",
  paper="arXiv 2110.06848",
  files=("model/losses/dcl.py",),
  tests=("tests/model/losses/test_dcl.py",),
  positives="Pairs",
  query="image",
  key="text",
  similarity="cosine",
  family="softmax",
  negatives="Batch",
  update="end-to-end",
)
WAVE = [
  dict(key="dcl", title="A Paper", paper="arXiv 2110.06848"),
  dict(key="other", title="Another Paper", paper=""),
  dict(key="crl_survey", title="A Survey", paper="arXiv 2010.05113"),
]


@pytest.fixture(scope="module")
def made():
  return systems.pages()


def test_committed_pages_are_the_generated_ones(made):
  for path, text in made.items():
    assert path.read_text() == text, "run python -m tools.systems"


def test_every_link_is_to_a_file_that_is_there(made):
  for path, text in made.items():
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    assert len(links) > 50
    for link in links:
      if not link.startswith("https://"):
        assert (path.parent / link).resolve().is_file(), link


def test_every_recipe_has_its_row_and_every_paper_of_the_wave_its_place(made):
  index, taxonomy = made.values()
  for m in systems.methods():
    assert index.count(f"(../../configs/methods/{m.key}.py)") == 1
    # Once under each axis, and once in the table of all.
    assert taxonomy.count(f"[{m.key}](") == len(systems.AXES) + 1
  built, missing = index.split("## Not built yet")
  for row in json.loads((systems.ROOT / "docs/systems/wave1.json").read_text()):
    if row["key"] in systems.SURVEYS:
      assert row["title"] in taxonomy
    elif row["title"] not in missing:
      assert f"configs/methods/{row['key']}.py" in built, row["key"]


def test_every_claim_has_a_row():
  claims = {p.stem for p in (systems.ROOT / "docs/results/claims").glob("*.json")}
  keys, docs = [m.key for m in systems.methods()], systems.ROOT / "docs"
  led_to = [c for key in keys for c in systems.claims_of(key, keys, docs)]
  assert sorted(led_to) == sorted(claims), "no recipe leads to the claim, or two do"


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (dict(negatives="bacth"), "negatives = 'bacth' is unknown; did you mean batch"),
    (dict(family="anything"), "family = 'anything' is unknown"),
    (dict(query="one two three four five six seven"), "is not of 1 to 6 words"),
    (dict(key=""), "is not of 1 to 6 words"),
    (dict(paper="2110.06848"), "is no 'arXiv"),
    (dict(files=("model/losses/gone.py",)), "no file model/losses/gone.py"),
    (dict(tests="tests/model/losses/test_dcl.py"), "must be a tuple of paths"),
    (dict(more=1), r"has besides \['more'\]"),
  ],
)
def test_what_is_unknown_is_said(change, says):
  with pytest.raises(ValueError, match=says):
    systems.method("dcl", METHOD | change)


def test_a_missing_key_is_said_and_all_complaints_come_at_once():
  with pytest.raises(ValueError, match=r"dcl.py: METHOD lacks \['update'\]"):
    systems.method("dcl", {k: v for k, v in METHOD.items() if k != "update"})
  with pytest.raises(ValueError, match=r"(?s)negatives = 'x'.*update = 'y'"):
    systems.method("dcl", METHOD | dict(negatives="x", update="y"))


def test_case_does_not_matter():
  method = systems.method("dcl", METHOD)
  assert (method.positives, method.negatives) == ("pairs", "batch")
  assert (method.key, method.key_side) == ("dcl", "text")


def claim(docs, *verdicts):
  folder = docs / "results" / "claims"
  folder.mkdir(parents=True)
  statements = [{"verdict": v} for v in verdicts]
  result = dict(title="DCL, small", statements=statements)
  (folder / "dcl.json").write_text(json.dumps(result))


def test_a_row_says_held_only_if_a_json_does(tmp_path):
  methods = [systems.method("dcl", METHOD)]
  text = systems.index(methods, tmp_path, WAVE)
  assert "no claim yet" in text.splitlines()[6] and "held" not in text.splitlines()[6]
  claim(tmp_path, "held", "not held", "inconclusive", "held")
  row = systems.index(methods, tmp_path, WAVE).splitlines()[6]
  assert "| held 2 of 4, not held 1 of 4, inconclusive 1 of 4 |" in row
  assert "[DCL, small](../claims/dcl.md)" in row
  assert "(../figures/claims/dcl.png)" in row


def test_what_is_not_built_is_listed(tmp_path):
  text = systems.index([systems.method("dcl", METHOD)], tmp_path, WAVE)
  missing = text.split("## Not built yet")[1]
  assert missing.strip() == "- Another Paper"


def test_check_writes_nothing_and_says_what_is_old(made, monkeypatch, capsys, tmp_path):
  assert systems.main(["--check"]) == 0
  stale = {tmp_path / "README.md": "new"}
  monkeypatch.setattr(systems, "pages", lambda: stale)
  assert systems.main(["--check"]) == 1
  assert "README.md is old" in capsys.readouterr().err
  assert not (tmp_path / "README.md").exists()
  assert systems.main([]) == 0
  assert (tmp_path / "README.md").read_text() == "new"
