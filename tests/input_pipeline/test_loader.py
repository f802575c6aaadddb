"""The stream: the same batches however it is read, exact resume, honest drops."""

import collections
import contextlib
import itertools
import multiprocessing
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from input_pipeline import examples, loader, pipeline
from tests.input_pipeline.pairs import pair


def batches(config, n, index=0, count=1, state=None):
  made = pipeline.train_loader(config, process_index=index, process_count=count)
  if state:
    made.restore(state)
  out = list(itertools.islice(made, n))
  made.close()
  return out, made


def assert_same(a, b):
  assert len(a) == len(b)
  for x, y in zip(a, b):
    assert x.keys() == y.keys()
    for key in x:
      assert x[key].dtype == y[key].dtype
      np.testing.assert_array_equal(x[key], y[key])


@pytest.fixture(scope="module")
def reference(request, paths, tokenizer):
  from tests.input_pipeline.pairs import make_config

  return batches(make_config(paths, tokenizer, threads=0), 10)[0]


def test_batches_hold_what_the_model_reads(reference):
  batch = reference[0]
  assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
    "image": ((12, 16, 16, 3), "float32"),
    "text": ((12, 12), "int32"),
    "text_mask": ((12, 12), "bool"),
    "id": ((12,), "int32"),
    "index": ((12,), "int32"),
    "label_kind": ((12,), "int32"),
  }
  kinds = [pair_of(i)["label_kind"] for i in batch["index"]]
  np.testing.assert_array_equal(batch["label_kind"], kinds)


def pair_of(index):
  # Two shards, round robin: the first holds the even examples.
  return pair(2 * index if index < 25 else 2 * (index - 25) + 1)


@pytest.mark.parametrize("threads", [1, 4])
def test_threads_do_not_matter(config, reference, threads):
  assert_same(batches(config(threads=threads, prefetch=3), 10)[0], reference)


def test_workers_do_not_matter(config, reference):
  assert_same(batches(config(workers=2, threads=2, prefetch=2), 4)[0], reference[:4])


def test_workers_leave_signals_to_the_run(config, reference):
  """Ctrl-C reaches all processes; the run answers it after the step, by a save."""
  made = pipeline.train_loader(
    config(workers=2, threads=2, prefetch=1), process_index=0, process_count=1
  )
  got = [next(made) for _ in range(2)]  # both have begun
  workers = multiprocessing.active_children()
  assert len(workers) == 2
  for worker in workers:
    for number in (signal.SIGINT, signal.SIGTERM):
      os.kill(worker.pid, number)
  got += [next(made) for _ in range(8)]
  assert_same(got, reference)
  assert all(worker.is_alive() for worker in workers)
  made.close()
  assert not any(worker.is_alive() for worker in workers)


KILLED = """
import sys, time
from input_pipeline import pipeline
from tests.input_pipeline import pairs
if __name__ == "__main__":
  config = pairs.make_config(*sys.argv[1:], workers=2, prefetch=1)
  loader = pipeline.train_loader(config, process_index=0, process_count=1)
  next(loader), next(loader)
  print("read", flush=True)
  time.sleep(600)
"""


def test_no_worker_outlives_a_killed_run(paths, tokenizer, tmp_path):
  (tmp_path / "run.py").write_text(KILLED)
  run = subprocess.Popen(
    [sys.executable, str(tmp_path / "run.py"), paths, tokenizer],
    env=os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])},
    stdout=subprocess.PIPE,
    start_new_session=True,
  )
  try:
    assert run.stdout.readline() == b"read\n"
    run.kill()
    # The workers write there, too: it ends when nobody is left.
    run.communicate(timeout=60)
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(run.pid, signal.SIGKILL)


@pytest.mark.parametrize("count", [2, 4])
def test_process_counts_do_not_matter(config, reference, count):
  parts = [batches(config(), 3, i, count)[0] for i in range(count)]
  joined = [
    {k: np.concatenate([p[step][k] for p in parts]) for k in parts[0][0]}
    for step in range(3)
  ]
  assert_same(joined, reference[:3])


def test_batches_larger_than_a_chunk(config, monkeypatch, reference):
  monkeypatch.setattr(loader, "_CHUNK", 5)
  assert_same(batches(config(), 3)[0], reference[:3])


def test_epochs_are_permutations(config, reference):
  stream = np.concatenate([b["index"] for b in reference])
  assert sorted(stream[:50]) == list(range(50))
  assert sorted(stream[50:100]) == list(range(50))
  assert list(stream[:50]) != list(stream[50:100])
  other = config(threads=0)
  other.seed = 1
  first = batches(other, 5)[0]
  assert list(np.concatenate([b["index"] for b in first])[:50]) != list(stream[:50])


def test_augmentation_differs_between_epochs(reference):
  images = collections.defaultdict(list)
  for batch in reference:
    for i, image in zip(batch["index"], batch["image"]):
      images[int(i)].append(image)
  again = [v for v in images.values() if len(v) > 1]
  assert len(again) > 40
  assert not any(np.array_equal(v[0], v[1]) for v in again)


@pytest.mark.parametrize("changes", [{}, {"threads": 4}, {"threads": 0}])
def test_resume_in_the_middle_of_an_epoch(config, reference, changes):
  made = pipeline.train_loader(config(), process_index=0, process_count=1)
  for _ in range(3):
    next(made)
  state = made.state()
  assert state == {"example": 36, "tried": 36, "dropped": 0}
  next(made)
  made.restore(state)
  assert_same([next(made)], reference[3:4])
  made.close()
  assert_same(batches(config(**changes), 7, state=state)[0], reference[3:])


def test_resume_with_other_processes_and_batch_size(config, reference):
  state = batches(config(), 2)[1].state()
  changed = config()
  changed.batch_size = 24
  parts = [batches(changed, 1, i, 3, state)[0][0] for i in range(3)]
  got = np.concatenate([p["index"] for p in parts])
  want = np.concatenate([b["index"] for b in reference[2:4]])
  np.testing.assert_array_equal(got, want)


BAD = {
  3: {"image_bytes": pair(3)["image_bytes"][:600]},
  7: {"image_bytes": b"not an image"},
  11: {"captions": {"en": ["", "  "]}},
}


def test_bad_examples_are_replaced_and_counted(broken):
  config = broken(30, BAD, max_dropped=0.2, threads=0)
  reference, made = batches(config, 10)
  indices = np.concatenate([b["index"] for b in reference])
  assert len(indices) == 120
  assert not set(indices) & set(BAD)
  assert made.dropped.keys() == {"truncated image", "not an image", "empty caption"}
  state = made.state()
  assert state["dropped"] == sum(made.dropped.values()) >= 12
  assert state["tried"] == 120 + state["dropped"]
  # The rest of the stream is what it would be without them, and resumes in place.
  config.data.threads = 3
  parts = [batches(config, 10, i, 2) for i in range(2)]
  for b, x, y in zip(reference, parts[0][0], parts[1][0]):
    np.testing.assert_array_equal(b["index"], [*x["index"], *y["index"]])
    np.testing.assert_array_equal(b["image"], [*x["image"], *y["image"]])
  assert sum(p[1].state()["dropped"] for p in parts) == state["dropped"]
  half = batches(config, 4)[1].state()
  rest, resumed = batches(config, 6, state=half)
  assert_same(rest, reference[4:])
  assert resumed.state() == state
  assert resumed.dropped["before the restart"] == half["dropped"]


def test_too_many_dropped_is_an_error_with_the_reasons(broken):
  config = broken(30, BAD, max_dropped=0.005)
  made = pipeline.train_loader(config, process_index=0, process_count=1)
  with pytest.raises(examples.TooManyDropped, match=r"not an image \d+ \(example 7\)"):
    for _ in range(20):
      next(made)
  made.close()


def test_nothing_but_bad_examples(broken):
  config = broken(5, {i: {"image_bytes": b"x"} for i in range(5)})
  with pytest.raises(examples.TooManyDropped, match="64 of 64 examples dropped"):
    pipeline.train_loader(config, process_index=0, process_count=1)
  made = pipeline.eval_batches(
    config, split="train", batch_size=4, process_index=0, process_count=1
  )
  with pytest.raises(examples.TooManyDropped, match="not an image 5"):
    list(made)


def evaluate(config, size, count):
  return [
    pipeline.eval_batches(
      config, split="train", batch_size=size, process_index=i, process_count=count
    )
    for i in range(count)
  ]


@pytest.mark.parametrize(("size", "count"), [(12, 1), (16, 4), (50, 2), (64, 2)])
def test_evaluation_sees_every_example_once(config, size, count):
  made = evaluate(config(), size, count)
  got = [list(m) for m in made]
  lengths = {len(m) for m in made} | {len(g) for g in got}
  assert lengths == {-(-50 // size)}
  seen = []
  for batch in itertools.chain(*got):
    assert batch["image"].shape == (size // count, 16, 16, 3)
    assert (batch["index"] >= 0).tolist() == batch["valid"].tolist()
    padding = ~batch["valid"]
    assert not batch["text_mask"][padding].any()
    assert (batch["id"][padding] == -1).all()
    assert (batch["label_kind"][padding] == -1).all()
    seen += list(batch["index"][batch["valid"]])
  assert sorted(seen) == list(range(50))
  assert_same(list(made[0]), got[0])  # once more


def test_evaluation_marks_bad_examples(broken):
  config = broken(30, BAD, max_dropped=0.2)
  (made,) = evaluate(config, 8, 1)
  got = list(made)
  valid = np.concatenate([b["valid"] for b in got])
  assert set(np.flatnonzero(~valid[:30])) == set(BAD)
  assert sum(made.dropped.values()) == 3
  config.data.max_dropped = 0.05
  with pytest.raises(examples.TooManyDropped, match="max_dropped = 5"):
    list(evaluate(config, 8, 1)[0])


def test_evaluation_takes_source_options(config, broken):
  other = broken(6, {})
  options = {"paths": other.data.options.paths}
  made = pipeline.eval_batches(
    config(),
    split="test",
    batch_size=8,
    process_index=0,
    process_count=1,
    options=options,
  )
  assert sum(b["valid"].sum() for b in made) == 6
  assert (
    len(pipeline.source(config(), options={"source": "arrayrecord", **options})) == 6
  )


class TestErrors:
  def load(self, config, **how):
    return pipeline.train_loader(config, **dict(process_index=0, process_count=1) | how)

  def test_batch_size(self, config):
    with pytest.raises(ValueError, match=r"12 % 5 = 2\): set config\.batch_size"):
      self.load(config(), process_count=5)

  def test_missing_key(self, broken):
    config = broken(4, {i: {"captions": None} for i in range(4)})
    config.data.transforms = [t for t in config.data.transforms if t[0] != "tokenize"]
    config.data.transforms += (("tokenize", {"key": "caption_fr"}),)
    config.data.transforms = tuple(
      t for t in config.data.transforms if t[0] != "sample_caption"
    )
    with pytest.raises(
      ValueError, match=r"'tokenize' reads 'caption_fr', which example \d.*'captions'"
    ):
      self.load(config)

  def test_unknown_names_and_options(self, config):
    with pytest.raises(ValueError, match="did you mean random_resized_crop"):
      self.load(config(transforms=(("random_resize_crop", {}),)))
    with pytest.raises(ValueError, match="did you mean size"):
      self.load(config(transforms=(("resize", {"sizes": 3}),)))
    with pytest.raises(ValueError, match="did you mean emoji"):
      self.load(config(source="emojis"))
    with pytest.raises(ValueError, match=r"config\.data\.source is not set"):
      self.load(config(source=""))

  def test_needed_options(self, config):
    c = config(transforms=(("resize", {}),))
    del c.model.modalities["image"]
    with pytest.raises(ValueError, match=r"resize needs the options \['size'\]"):
      self.load(c)

  def test_arrays_that_do_not_fit_the_model(self, config):
    c = config()
    c.data.transforms = tuple(t for t in c.data.transforms if t[0] != "normalize")
    c.data.transforms = tuple(t for t in c.data.transforms if t[0] != "color")
    with pytest.raises(ValueError, match=r"uint8\[16, 16, 3\].*reads float32"):
      self.load(c)
    c = config()
    c.model.modalities.image.size = (32, 32, 3)
    c.data.transforms = (
      ("decode_image", {}),
      ("resize", {"size": (16, 16)}),
      ("normalize", {}),
    )
    with pytest.raises(
      ValueError, match=r"modalities\.image reads float32\[32, 32, 3\]"
    ):
      self.load(c)

  def test_no_modality(self, config):
    with pytest.raises(ValueError, match="hold no modality"):
      self.load(config(transforms=(("sample_caption", {}),)))

  def test_uneven_keys(self, broken):
    config = broken(12, {2: {"label_extra": 1}}, threads=0)
    with pytest.raises(ValueError, match="all examples need the same keys"):
      batches(config, 1)

  def test_negative_seed(self, config):
    c = config()
    c.seed = -1
    with pytest.raises(ValueError, match="negative"):
      self.load(c)
