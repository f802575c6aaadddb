"""What a loss reads besides modalities: labels as numbers, grades, partners, bags."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest

from input_pipeline import pipeline
from input_pipeline.drop import Drop
from input_pipeline.transforms import (
  graded_query,
  id_from_label,
  keep,
  one_hot,
  pair_classes,
  sample_caption,
)


def rng(seed=0):
  return np.random.default_rng(seed)


def batches(config, n):
  loader = pipeline.train_loader(config, process_index=0, process_count=1)
  out = list(itertools.islice(loader, n))
  loader.close()
  return out


def test_two_captions_of_one_example():
  captions = {"en": ("cat",), "de": ("Katze",)}
  example = sample_caption.Transform(share=1.0)({"captions": captions}, rng())
  second = sample_caption.Transform(language="de", share=1.0, key="caption_de")
  assert (second.reads, second.writes) == (("captions",), ("caption_de",))
  example = second(example, rng())
  assert (example["caption"], example["caption_de"]) == ("cat", "Katze")
  names = sample_caption.Transform(captions="names", language="kind", share=1.0)
  assert names.reads == ("names",)
  assert names({"names": {"kind": "animal"}}, rng())["caption"] == "animal"


def test_one_hot_joins_labels_and_leaves_the_unlabelled_at_zero():
  transform = one_hot.Transform(labels=(("a", 2), ("b", 3)), key="prior")
  got = transform({"label_a": 1, "label_b": 0}, rng())["prior"]
  assert got.dtype == np.float32
  np.testing.assert_array_equal(got, [0, 1, 1, 0, 0])
  got = transform({"label_a": -1, "label_b": 2}, rng())["prior"]
  np.testing.assert_array_equal(got, [0, 0, 0, 0, 1])
  with pytest.raises(ValueError, match="'b' 3 classes, but label_b = 3"):
    transform({"label_a": 0, "label_b": 3}, rng())


def test_id_from_label():
  transform = id_from_label.Transform(label="kind")
  assert transform({"id": 7, "label_kind": 2}, rng())["id"] == 2
  with pytest.raises(Drop, match="unlabelled"):
    transform({"id": 7, "label_kind": -1}, rng())


def test_graded_queries_are_drawn_by_weight_and_marked_by_text():
  levels = (("", 3.0, 0.5), ("kind", 1.0, 0.5))
  transform = graded_query.Transform(levels=levels)
  example = {"caption": "Cat", "class_names": {"kind": "animal"}}
  got = [transform(example, rng(s)) for s in range(200)]
  assert {(e["caption"], float(e["grade"])) for e in got} == {
    ("Cat", 3.0),
    ("animal", 1.0),
  }
  assert 60 < sum(e["caption"] == "Cat" for e in got) < 140
  marks = collections.defaultdict(set)
  for e in got:
    marks[e["caption"]].add(e["query"])
  assert [len(m) for m in marks.values()] == [1, 1]
  assert marks["Cat"] != marks["animal"]
  # "cat" asks for the same; a class without a name is never asked for.
  other = example | {"caption": "cat", "class_names": {"kind": ""}}
  got = [transform(other, rng(s)) for s in range(20)]
  assert {e["query"] for e in got} == marks["Cat"]
  with pytest.raises(ValueError, match="must have"):
    graded_query.Transform(levels=(("kind", 1.0, 1.0),))
  unknown = graded_query.Transform(levels=(("", 3.0, 1.0), ("knid", 1.0, 0.0)))
  with pytest.raises(ValueError, match=r"levels: 'knid' is none of .* mean kind"):
    unknown(example, rng())


def test_pairs_of_classes_come_from_a_partner_or_stay():
  example = {
    "captions": "cat",
    "label_kind": 1,
    "partner": {"captions": "car", "label_kind": 2},
  }
  other = pair_classes.Transform(label="kind")(example, rng())
  assert (other["captions"], other["label_kind_other"]) == ("car", 2)
  assert other["label_kind"] == 1
  own = pair_classes.Transform(label="kind", share=0.0)(example, rng())
  assert (own["captions"], own["label_kind_other"]) == ("cat", 1)
  with pytest.raises(Drop, match="unlabelled"):
    pair_classes.Transform(label="kind")(example | {"label_kind": -1}, rng())


def test_what_transforms_keep_is_in_the_batch_and_partners_are_drawn(config):
  changed = config(threads=0)
  given = changed.data.transforms
  at = [name for name, _ in given].index("sample_caption")
  changed.data.transforms = (
    *given[:at],
    ("pair_classes", dict(label="kind", share=1.0)),
    *given[at:],
    ("one_hot", dict(labels=(("kind", 3),))),
    ("keep", dict(keys=("label_kind",))),
  )
  rows = batches(changed, 4)
  for batch in rows:
    assert batch["condition"].shape == (12, 3)
    assert batch["condition"].dtype == np.float32
    np.testing.assert_array_equal(batch["condition"].argmax(1), batch["label_kind"])
  kinds = np.concatenate([b["label_kind"] for b in rows])
  others = np.concatenate([b["label_kind_other"] for b in rows])
  assert 0.1 < (kinds == others).mean() < 0.7, "a third, by chance"
  assert batches(changed, 1)[0]["label_kind_other"].tolist() == others[:12].tolist()


@pytest.mark.parametrize(
  ("value", "dtype"), [(3, np.int32), (True, np.int32), (0.5, np.float32)]
)
def test_kept_numbers_are_of_32_bits(config, value, dtype):
  changed = config(threads=0)
  maker = pipeline.train_loader(changed, process_index=0, process_count=1)
  maker = maker._stream.members[0].maker
  transform = keep.Transform(keys=("extra",))
  maker = dataclasses.replace(
    maker, transforms=(*maker.transforms, ("keep", transform))
  )
  arrays = maker._arrays(
    {"text": np.zeros(12, np.int32), "extra": np.array([value])}, 0
  )
  assert arrays["extra"].dtype == dtype and arrays["extra"].shape == (1,)


@pytest.mark.parametrize(
  ("key", "value", "why"),
  [
    ("id", 2**32 + 1, "have 32 bits"),
    ("id", np.uint64(2**40), "have 32 bits"),
    ("label_kind", 1.7, "not a whole number"),
    ("label_kind", float("nan"), "not a whole number"),
    ("label_kind", None, "not a whole number"),
    ("extra", np.array([1, 2**31]), "have 32 bits"),
    ("extra", "red", "not a number"),
  ],
)
def test_numbers_that_a_batch_cannot_hold_are_refused(config, key, value, why):
  loader = pipeline.train_loader(config(threads=0), process_index=0, process_count=1)
  maker = loader._stream.members[0].maker
  if key == "extra":
    kept = ("keep", keep.Transform(keys=("extra",)))
    maker = dataclasses.replace(maker, transforms=(*maker.transforms, kept))
  with pytest.raises(ValueError, match=f"'{key}' of example 4 is .*{why}"):
    maker._arrays({"text": np.zeros(12, np.int32), key: value}, 4)


def test_whole_floats_are_labels(config):
  loader = pipeline.train_loader(config(threads=0), process_index=0, process_count=1)
  maker = loader._stream.members[0].maker
  row = maker._arrays({"text": np.zeros(12, np.int32), "label_kind": 3.0}, 0)
  assert row["label_kind"] == 3 and row["label_kind"].dtype == np.int32


def test_a_bag_whose_example_drops_out_has_one_replacement(config):
  loader = pipeline.train_loader(
    config(threads=0, repeat=3), process_index=0, process_count=1
  )
  maker = loader._stream.members[0].maker

  @dataclasses.dataclass(frozen=True)
  class Odd:
    reads = writes = ()

    def __call__(self, example, rng):
      del rng
      return example if example["id"] % 2 else None

  broken = dataclasses.replace(maker, transforms=(("odd", Odd()), *maker.transforms))
  bags = [
    {int(broken.train_row(3 * i + j, 3 * i + j)[0]["index"]) for j in range(3)}
    for i in range(8)
  ]
  assert all(len(bag) == 1 for bag in bags)


def test_repeated_examples_are_bags_of_different_rows(config):
  got = batches(config(threads=0, repeat=3), 2)
  index = np.concatenate([b["index"] for b in got])
  assert (index.reshape(-1, 3) == index[::3, None]).all()
  assert len(set(index[::3].tolist())) == 8, "an epoch is still a permutation"
  image = np.concatenate([b["image"] for b in got])
  assert not np.array_equal(image[0], image[1]), "each is cropped anew"
  np.testing.assert_array_equal(batches(config(), 1)[0]["index"][:8], index[::3])


def test_a_batch_holds_whole_bags(config):
  with pytest.raises(ValueError, match=r"repeat = 5 must be .* config.batch_size = 12"):
    batches(config(repeat=5), 1)
