import types

import numpy as np
import pytest

from evaluators import zero_shot
from input_pipeline.drop import Drop


def test_class_embeddings_are_unit_means():
  prompts = np.asarray([[[1, 0], [0, 1]], [[1, 0], [1, 0]]], np.float32)
  z = zero_shot.class_embeddings(prompts)
  np.testing.assert_allclose(z, [[0.5**0.5, 0.5**0.5], [1, 0]], atol=1e-6)


def test_ranks_match_brute_force_with_ties():
  rng = np.random.default_rng(0)
  classes = rng.normal(size=(7, 3)).astype(np.float32)
  classes[4] = classes[2]
  z = rng.normal(size=(40, 3)).astype(np.float32)
  label = rng.integers(0, 7, 40).astype(np.int32)
  s = z @ classes.T
  expected = [
    sum(s[i, c] >= s[i, label[i]] - 1e-6 for c in range(7) if c != label[i])
    for i in range(40)
  ]
  np.testing.assert_array_equal(zero_shot.ranks(z @ classes.T, label), expected)


def test_collapsed_classes_are_never_right():
  z = np.ones((5, 1), np.float32)
  rank = zero_shot.ranks(z @ np.ones((1, 3), np.float32), np.asarray([0, 1, 2, 0, 1]))
  assert (rank == 2).all()


def test_summary():
  label = np.asarray([0, 0, 0, 1])
  m = zero_shot.summarise(np.asarray([0, 0, 3, 6]), label, classes=4)
  assert m["top1"] == 0.5
  assert m["top5"] == 0.75
  assert m["mean_per_class"] == pytest.approx((2 / 3 + 0) / 2)
  assert (m["chance"], m["majority"]) == (0.25, 0.75)


def test_readable_names():
  assert zero_shot.readable("animal-mammal") == "animal mammal"
  assert zero_shot.readable("Food & Drink") == "Food & Drink"


def test_classes_are_counted_without_what_drops_out(monkeypatch):
  class Source:
    def __init__(self, labels):
      self.labels, self.classes = labels, {"kind": ("a", "b", "c")}

    def __len__(self):
      return len(self.labels)

    def __getitem__(self, i):
      if self.labels[i] is None:
        raise Drop("missing file")
      return {"label_kind": self.labels[i]}

  sources = dict(train=[2, None, 0, -1, 2], test=[0], bad=[None])
  monkeypatch.setattr(
    zero_shot.pipeline, "source", lambda config, split, options: Source(sources[split])
  )

  def support(*splits):
    made = zero_shot.Evaluator(
      types.SimpleNamespace(config=None), labels=("kind",), count_splits=splits
    )
    return made._support(np.zeros(9, np.int32), "kind", 3).tolist()

  assert support("train", "test") == [2, 0, 2]
  assert support("bad") == [0, 0, 0]
  assert support() == [9, 0, 0]
