"""What each expert likes: crops where the patches are, words as they are spelt."""

import dataclasses
import re

import numpy as np
from PIL import Image
import pytest

from input_pipeline import tokenizer
from tests.tools import synthetic
from tools import report_data, report_experts


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return report_data.read(synthetic.write(tmp_path_factory.mktemp("run") / "work"))


def test_a_tile_shows_the_patch_within_its_surroundings():
  # Every patch of 2 x 4 has its own colour.
  colours = np.arange(1, 9, dtype=np.uint8).reshape(2, 4) * 30
  pixels = np.kron(colours, np.ones((20, 10), np.uint8))
  picture = Image.fromarray(pixels).convert("RGB")
  for row in range(2):
    for column in range(4):
      tile = report_experts.tile(picture, (row, column), (2, 4))
      middle, quarter = report_experts.TILE // 2, report_experts.TILE // 8
      assert (tile[middle, middle] == colours[row, column]).all()
      if column:
        assert (tile[middle, quarter] == colours[row, column - 1]).all()
      else:
        assert (tile[middle, quarter] == (0xD0, 0xD5, 0xDA)).all()  # nothing there


def test_patches_lie_in_what_evaluation_keeps_of_a_picture(run):
  assert report_experts.crop(run) == 0
  data = {"eval_transforms": [["resize", {"crop": 0.5}]]}
  cropped = dataclasses.replace(run, config={"data": data})
  assert report_experts.crop(cropped) == 0.5
  picture = Image.new("RGB", (40, 20), "red")
  picture.paste("blue", (15, 5, 25, 15))
  kept = report_experts.seen(picture, 0.5)
  assert kept.size == (10, 10) and kept.getcolors() == [(100, (0, 0, 255))]
  assert report_experts.seen(picture, 0.0) is picture


def test_an_artifact_of_an_older_version_has_no_favourites(run, monkeypatch):
  monkeypatch.setattr(report_data, "open_source", lambda *_: pytest.fail("not needed"))
  new = run.artifacts["routing"]
  old = {k: v for k, v in new.items() if "/" not in k}
  assert "load" in old and len(old) < len(new)
  older = dataclasses.replace(run, artifacts={"routing": old})
  assert list(report_experts.patches(older)) == list(report_experts.words(older)) == []


@pytest.mark.parametrize("source", [None, [{"audio": b""}] * synthetic.N])
def test_without_pictures_there_are_only_words(run, monkeypatch, source):
  monkeypatch.setattr(report_data, "open_source", lambda *_: source)
  assert list(report_experts.patches(run)) == []
  assert len(list(report_experts.words(run))) == 2


def test_words_are_spelt_by_the_tokenizer_of_the_workdir(run, tmp_path):
  captions = ["red cat", "red cats", "big dog", "bigger dogs", "a cat and a dog"]
  vocab = 272
  tokenizer.train_tokenizer(captions, str(tmp_path / "tokenizer.model"), vocab)
  config = run.config | {"data": {"tokenizer": "/where/it/was/tokenizer.model"}}
  config |= {"model": {"modalities": {"text": {"vocab": vocab}}}}
  moved = dataclasses.replace(run, path=tmp_path, config=config)
  spell = report_experts.speller(moved)
  found = tokenizer.load(str(tmp_path / "tokenizer.model"), vocab)
  words = [[spell(i) for i in found.encode(text)] for text in captions]
  for text, pieces in zip(captions, words):
    joined = " ".join("" if p == "space" else p for p in pieces)
    # A letter too rare for a piece is spelt as its byte.
    joined = re.sub(r" <0x(\w\w)>", lambda m: chr(int(m[1], 16)), joined)
    assert joined.replace(" -", "").split() == text.split(), pieces
  assert spell(tokenizer.END) == "</s>"
  assert spell(4) == "<0x00>"
