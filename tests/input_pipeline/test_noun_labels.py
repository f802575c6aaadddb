"""Classes out of captions: words, the vocabulary, and the file that holds it."""

import pickle

import numpy as np
import pytest

from input_pipeline import pipeline
from input_pipeline.transforms import noun_labels
from tests.input_pipeline import pairs

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
  ("plural", "one"),
  [
    ("cats", "cat"),
    ("cat", "cat"),
    ("puppies", "puppy"),
    ("boxes", "box"),
    ("dishes", "dish"),
    ("Women", "woman"),
    ("glasses", "glass"),
    ("bus", "bus"),
    ("tennis", "tennis"),
    ("Bäume", "bäume"),
  ],
)
def test_plural_and_singular_are_one_class(plural, one):
  assert noun_labels.nouns(plural) == [one]


def test_words_that_join_others_give_no_class():
  assert noun_labels.nouns("There was a cat, and a cat 2, on the mat") == ["cat", "mat"]
  assert noun_labels.nouns("with of the") == noun_labels.nouns("") == []


def test_the_vocabulary_is_of_captions_not_of_words_or_their_order():
  captions = ["a dog, dogs and dogs", "cat", "two cats", "one zebra", "ants", "ant"]
  for order in (captions, captions[::-1]):
    assert noun_labels.frequent(order, 9, 2) == ["ant", "cat"]
    assert noun_labels.frequent(order, 3) == ["ant", "cat", "dog"]


def make(tmp_path, words, **options):
  path = tmp_path / "nouns.txt"
  path.write_text("\n".join(words))
  return noun_labels.Transform(classes=3, vocabulary=str(path), **options)


def test_labels_are_the_places_of_known_words(tmp_path):
  transform = make(tmp_path, ["cat", "dog", "mat"], most=2)
  for t in (transform, pickle.loads(pickle.dumps(transform))):
    for caption, want in {
      "dogs and a cat, a dog on a mat": [1, 0],
      "a mat": [2, -1],
      "nothing known": [-1, -1],
    }.items():
      got = t({"caption": caption}, RNG)["label_nouns"]
      assert got.dtype == np.int32
      np.testing.assert_array_equal(got, want)


def test_more_words_than_classes_say_what_to_set(tmp_path):
  with pytest.raises(ValueError, match=r"has 4 words, but noun_labels has classes = 3"):
    make(tmp_path, "abcd")({"caption": "a cat"}, RNG)
  with pytest.raises(FileNotFoundError, match="prepare"):
    noun_labels.Transform(classes=3)({"caption": "a cat"}, RNG)


def test_names_of_classes_find_their_rows():
  words = ["dog", "cat", "house"]
  names = ["dogs", "hot dog", "cat house", "the zebra"]
  np.testing.assert_array_equal(noun_labels.rows(names, words), [0, 0, 2, -1])


def test_prepare_makes_the_file_once_and_batches_hold_the_labels(paths, tmp_path):
  config = pairs.make_config(paths, "")
  config.data.transforms = (
    ("decode_image", {}),
    ("resize", {}),
    ("normalize", {}),
    ("sample_caption", {}),
    ("noun_labels", dict(classes=10, most=3)),
  )
  config.data.eval_transforms = config.data.transforms[:3]
  prepared = pipeline.prepare(config, str(tmp_path))
  path = tmp_path / "nouns.txt"
  words = path.read_text().split()
  assert len(words) == 10 and set(words) <= {*pairs.WORDS, "le"}
  stamp = path.stat().st_mtime_ns
  again = pipeline.prepare(prepared, str(tmp_path))
  assert path.stat().st_mtime_ns == stamp
  assert again.data.transforms[-1][1]["vocabulary"] == str(path)
  assert "vocabulary" not in config.data.transforms[-1][1]  # a copy was changed
  batches = pipeline.train_loader(again, process_index=0, process_count=1)
  labels = next(batches)["label_nouns"]
  batches.close()
  assert labels.shape == (12, 3) and labels.max() < 10 and (labels >= 0).any()


def test_no_frequent_word_says_what_to_set(tmp_path):
  options = dict(classes=3, min_count=9)
  with pytest.raises(ValueError, match="no word is in 9 training captions"):
    noun_labels.Transform.prepare(options, str(tmp_path), lambda: ["a cat"])
