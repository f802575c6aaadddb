"""Tunes cut into bars, letters kept; whatever else drops."""

import numpy as np
import pytest

from configs import base
from input_pipeline import pipeline
from input_pipeline.drop import Drop
from input_pipeline.transforms import text_patches

TUNE = """X:1
T:A tune | with a line
M:6/8
K:D
|:A2d dcd|"D"f2a|1 [df]ge :|2 fed [M:3/4] d2||
[|e2 f::g|[ace]3 z|]
w: la la | la
"""
BARS = [
  "X:1\n",
  "T:A tune | with a line\n",
  "M:6/8\n",
  "K:D\n",
  "|:A2d dcd|",
  '"D"f2a|1',
  " [df]ge :|2",
  " fed [M:3/4] d2||\n",
  "[|e2 f::",
  "g|",
  "[ace]3 z|]\n",
  "w: la la | la\n",
]


def make(text, **options):
  given = dict(length=16, chars=24) | options
  made = text_patches.Transform(**given)
  out = made({"abc": text, "id": 1}, np.random.default_rng(0))
  assert out.keys() == {"id", "music", "music_mask"} and out["music"].dtype == np.int32
  return out["music"], out["music_mask"]


def read(ids):
  return ["".join(map(chr, row[row > 0])) for row in ids if row.any()]


def test_bars():
  assert text_patches.bars(TUNE) == BARS
  ids, mask = make(TUNE)
  assert read(ids) == [*BARS[:-1], BARS[-1].strip()]
  np.testing.assert_array_equal(mask, np.arange(16) < len(BARS))
  np.testing.assert_array_equal(mask, ids.any(axis=1))


@pytest.mark.parametrize("line", ["|", "||\n", "a", "|a", "a|\nb|", "::", ":|", "[1a|"])
def test_nothing_is_lost(line):
  assert "".join(text_patches.bars(line)) == line
  assert all(text_patches.bars(line))


def test_long_bars_go_on_and_long_tunes_end():
  ids, mask = make("abcdefgh|ij|", chars=4)
  assert read(ids) == ["abcd", "efgh", "|", "ij|"] and mask.sum() == 4
  ids, mask = make("abcdefgh|ij|", chars=4, length=2)
  assert read(ids) == ["abcd", "efgh"] and mask.all()


def test_lines_and_letters_beyond_the_vocabulary():
  ids, _ = make(b"a|b\r\nna\xc3\xafve\0", by="lines")
  assert read(ids) == ["a|b\n", "na\x7f\x7fve"]
  ids, _ = make("naïve", vocab=256)
  assert bytes(ids[0][ids[0] > 0].astype(np.uint8)).decode() == "naïve"


@pytest.mark.parametrize("by", ["lines", "bars"])
@pytest.mark.parametrize("text", ["abc\ndef\nghi\n", "\n".join("abcdefghijklmn"), TUNE])
def test_the_ends_of_lines_may_be_those_of_windows(text, by):
  given = dict(length=3, chars=4, by=by)
  for got, want in zip(make(text.replace("\n", "\r\n"), **given), make(text, **given)):
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize(
  ("text", "reason"),
  [
    ("", "empty text"),
    (" \n", "empty text"),
    ("\0\0", "empty text"),
    (None, "empty text"),
    (b"caf\xe9", "text is not UTF-8"),
    ("\ud800", "text is not UTF-8"),
  ],
)
def test_unusable(text, reason):
  with pytest.raises(Drop, match=f"^{reason}$"):
    make(text)


def test_a_hundred_thousand_letters_cost_nothing():
  ids, mask = make("|" * 50_000 + "a" * 100_000)
  assert mask.all() and ids.all()


def test_sizes_come_from_the_model():
  c = base.get_config()
  c.model.modalities.music = base.modality(
    stem="token_patches", vocab=99, length=12, patch=(7,)
  )
  c.data.transforms = (("text_patches", {}),)
  ((_, made),) = pipeline.transforms(c, "transforms")
  assert (made.length, made.chars, made.vocab) == (12, 7, 99)
  with pytest.raises(ValueError, match="by = 'bar', expected 'bars'"):
    text_patches.Transform(length=1, chars=1, by="bar")
