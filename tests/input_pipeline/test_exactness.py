"""The stream is one stream: whatever reads it, wherever it stopped, on any hosts."""

import json

import numpy as np
import pytest

from input_pipeline import buckets, pipeline
from input_pipeline.sources import in_memory
from tests.input_pipeline import mixed
from tests.input_pipeline.mixed import SIZES, batches, column, entry, make_config

FADING = entry("pairs", ((0, 3), (40, 1), (70, 1), (70, 2)))
SETTINGS = {
  "single": dict(),
  "buckets": dict(buckets=(4, 7)),
  "mixture": dict(mixture=(entry("pairs", 3), entry("images", 2), entry("texts", 1))),
  "schedule": dict(mixture=(FADING, entry("images", 1)), repeat=4),
  "single source": dict(mixture=(FADING, entry("texts", 1)), single_source=True),
  "mixture of buckets": dict(
    mixture=(FADING, entry("images", 1), entry("texts", 1)), buckets=(5,)
  ),
}


@pytest.fixture(scope="module", autouse=True)
def sources():
  mixed.put()


@pytest.fixture(scope="module")
def stream(tokenizer):
  """Returns a function: a setting's name -> (its config, its first 14 batches)."""
  made = {}

  def of(name):
    if name not in made:
      config = make_config(tokenizer, **SETTINGS[name])
      made[name] = config, batches(config, 14)[0]
    return made[name]

  return of


def assert_same(got, want):
  assert len(got) == len(want)
  for a, b in zip(got, want):
    assert a.keys() == b.keys()
    for key in a:
      np.testing.assert_array_equal(a[key], b[key])
      assert a[key].dtype == b[key].dtype


def on_hosts(config, count, n, state, rng):
  """Returns n global batches, read by hosts that differ, and a state among theirs."""
  parts, states = [], []
  for host in range(count):
    config.data.threads = int(rng.choice([0, 1, 2, 4]))
    config.data.prefetch = int(rng.integers(1, 4))
    got, made = batches(config, n, host, count, state)
    parts.append(got)
    states.append(made.state())
  whole = [
    {key: np.concatenate([p[step][key] for p in parts]) for key in parts[0][step]}
    for step in range(n)
  ]
  # As a checkpoint keeps it, from any host.
  return whole, json.loads(json.dumps(states[rng.integers(count)]))


@pytest.mark.parametrize("name", SETTINGS)
def test_8_then_4_then_1_then_8_hosts(stream, name):
  config, want = stream(name)
  rng, state, at = np.random.default_rng(7), None, 0
  for count in (8, 4, 1, 8):
    n = int(rng.integers(1, 4))
    got, state = on_hosts(config.copy_and_resolve_references(), count, n, state, rng)
    assert_same(got, want[at : at + n])
    at += n
    assert state["example"] == 8 * at


def test_workers_do_not_matter_to_mixtures(stream):
  config, want = stream("mixture of buckets")
  config = config.copy_and_resolve_references()
  config.data.update(dict(workers=2, threads=2, prefetch=2))
  assert_same(batches(config, 5)[0], want[:5])


@pytest.mark.parametrize(("size", "hosts"), [(5, 4), (16, 2), (23, 1), (23, 4)])
def test_every_example_once_in_every_epoch(tokenizer, size, hosts):
  # Batches of 8: smaller and larger than the data, dividing it and not. An epoch ends
  # and the next begins within a batch, so that no example is left out or padded.
  mixed.put({"pairs": size}, prefix="sized ")
  config = make_config(tokenizer, options={"name": "sized pairs"})
  state, rng = None, np.random.default_rng(0)
  got, _ = on_hosts(config, hosts, 8, state, rng)
  index = column(got, "index")
  epochs = [index[i : i + size] for i in range(0, 64 - size + 1, size)]
  for epoch in epochs:
    assert sorted(epoch) == list(range(size))
  assert epochs[0].tolist() != epochs[1].tolist()


@pytest.mark.parametrize("name", ["mixture", "schedule", "single source", "buckets"])
def test_every_source_has_whole_epochs(stream, name):
  config, want = stream(name)
  repeat = config.data.repeat
  index = column(want, "index")[::repeat]
  text = np.repeat([b["text"].shape[1] for b in want], 8)[::repeat]
  source = column(want, "label_source")[::repeat] if "mixture" in SETTINGS[name] else 0
  streams = list(zip(np.broadcast_to(source, text.shape), text))
  for one in set(streams):
    seen = index[[s == one for s in streams]]
    # Of each part, all examples come before any comes again.
    size = len(set(seen))
    for start in range(0, len(seen), size):
      assert len(set(seen[start : start + size])) == len(seen[start : start + size])
    if len(seen) > SIZES["pairs"]:
      assert sorted(seen[:size]) == sorted(set(seen))


def test_the_state_is_a_handful_of_integers(stream):
  config, _ = stream("mixture of buckets")
  state = batches(config, 3)[1].state()
  assert set(state) == {"example", "tried", "dropped", "given"}
  numbers = [state["example"]]
  for key in ("tried", "dropped", "given"):
    numbers += state[key].values()
  assert all(type(n) is int for n in numbers) and len(numbers) < 14
  assert sum(state["given"].values()) == state["example"] == 24
  assert set(state["tried"]) == {"pairs", "images", "texts"}


def test_random_settings(tokenizer):
  rng = np.random.default_rng(11)
  for _ in range(2):
    mixture = tuple(
      entry(name, ((0, float(rng.integers(1, 9))), (50, float(rng.integers(0, 9)))))
      for name in rng.permutation(list(SIZES))
    )
    changes = dict(
      repeat=int(rng.choice([1, 2, 8])),
      single_source=bool(rng.integers(2)),
      buckets=(3, 6) if rng.integers(2) else (),
    )
    config = make_config(tokenizer, (*mixture, entry("more", 2, "pairs")), **changes)
    config.seed = int(rng.integers(100))
    want, _ = batches(config, 7)
    first, state = on_hosts(config, 4, 3, None, rng)
    rest, _ = on_hosts(config, 2, 4, state, rng)
    assert_same(first + rest, want)


class TestImageSizes:
  SHAPES = (*5 * [(8, 8)], *6 * [(6, 12)], *4 * [(15, 9)])  # height, width

  def config(self, tokenizer, **data):
    decode = (("decode_image", {}), ("resize", {}), *mixed.RESIZED, *mixed.TOLD)
    files = [mixed.png(np.full((*s, 3), 9 * i)) for i, s in enumerate(self.SHAPES)]
    files[0] = b"no image"
    in_memory.put("shapes", image_bytes=files, captions=mixed.captions(15, 1))
    options = dict(options={"name": "shapes"}, max_dropped=0.9, transforms=decode)
    return make_config(tokenizer, **options, **data)

  def test_batches_are_of_like_shape_whatever_reads_them(self, tokenizer):
    config = self.config(tokenizer, image_sizes=((2, 6), (8, 4)), buckets=(5,))
    want, made = batches(config, 10)
    assert {b["image"].shape[1:3] for b in want} == {(4, 4), (2, 6), (8, 4)}
    wide = {8: (4, 4), 12: (2, 6), 9: (8, 4)}
    for b in want:
      widths = {wide[self.SHAPES[i][1]] for i in b["index"]}
      assert widths == {b["image"].shape[1:3]}
      assert b["text"].shape[1] in (5, 12)
    assert set(made.dropped) == {"not an image"}
    assert "image4x4-text5" in made.state()["given"]
    rng = np.random.default_rng(3)
    first, state = on_hosts(config, 4, 4, None, rng)
    assert_same(first + on_hosts(config, 2, 6, state, rng)[0], want)

  @pytest.mark.parametrize("sizes", [((4, 4),), ((2, 6), (2, 6)), ((2,),), ((0, 3),)])
  def test_errors(self, tokenizer, sizes):
    with pytest.raises(ValueError, match=r"image_sizes = .* must be different"):
      batches(self.config(tokenizer, image_sizes=sizes), 1)


class TestBuckets:
  def test_texts_of_a_batch_are_of_like_length(self, stream):
    _, want = stream("buckets")
    shapes = {b["text"].shape for b in want}
    assert shapes == {(8, 4), (8, 7), (8, 12)}
    for batch in want:
      assert batch["text"].shape == batch["text_mask"].shape
      below = {4: 0, 7: 4, 12: 7}[batch["text"].shape[1]]
      assert (batch["text_mask"].sum(axis=1) > below).all()

  def test_no_text_is_cut_more_than_without(self, stream):
    _, want = stream("buckets")
    _, plain = stream("single")
    whole = {
      int(i): row[m].tolist()
      for b in plain
      for i, row, m in zip(b["index"], b["text"], b["text_mask"])
    }
    for b in want:
      for i, row, mask in zip(b["index"], b["text"], b["text_mask"]):
        assert row[mask].tolist() == whole[int(i)]

  def test_each_has_as_many_batches_as_examples(self, stream):
    config, _ = stream("buckets")
    got, made = batches(config, 23)
    examples = {"text4": 0, "text7": 0, "text12": 0}
    for length in {
      int(i): b["text"].shape[1] for b in got for i in b["index"]
    }.values():
      examples[f"text{length}"] += 1
    assert sum(examples.values()) == 23
    for part, given in made.state()["given"].items():
      assert abs(given - 8 * examples[part]) < 8

  def test_what_cannot_be_measured_is_in_the_largest_part(self):
    image = np.array([[0, 0], [4, 8], [4, 9], [0, 0], [9, 9]])
    measured = {"text": np.array([0, 9, 3, 0, 3]), "image": image}
    found = buckets.parts(measured, (4, 8), ())
    assert {p.name: p.rows.tolist() for p in found} == {
      "text4": [0, 2, 3, 4],
      "text8": [1],
    }
    found = buckets.parts(measured, (), ((5, 5), (9, 3), (5, 10)))
    assert {p.name: p.rows.tolist() for p in found} == {
      "image5x5": [4],
      "image5x10": [0, 1, 2, 3],
    }
    nothing = {"text": np.zeros(5, int), "image": image}  # a source without texts
    assert [len(p.rows) for p in buckets.parts(nothing, (4, 8), ())] == [5]

  def test_lengths_are_kept_in_the_workdir(self, tokenizer, tmp_path, monkeypatch):
    config = make_config(tokenizer, buckets=(4, 7), lengths="{workdir}/lengths")
    prepared = pipeline.prepare(config, str(tmp_path))
    assert (tmp_path / "lengths" / "all.npz").exists()
    monkeypatch.setattr(pipeline.buckets, "measure", None)  # not measured again
    assert batches(prepared, 1)[0][0]["text"].shape[0] == 8
    mixed.put({"pairs": 9}, prefix="other ")
    prepared.data.options.name = "other pairs"
    with pytest.raises(TypeError):  # other examples: measured again
      batches(prepared, 1)

  @pytest.mark.parametrize("lengths", [(7, 4), (4, 12), (1, 4), (4, 4)])
  def test_errors(self, tokenizer, lengths):
    with pytest.raises(ValueError, match=r"rising lengths from 2, below .*= 12"):
      batches(make_config(tokenizer, buckets=lengths), 1)
