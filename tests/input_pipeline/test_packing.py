"""Plans of which texts share rows: sound, and the same however they are loaded."""

import dataclasses
import json

import numpy as np
import pytest

from configs import base
from input_pipeline import packing, pipeline
from model.encoders import config as configs
from tests.input_pipeline import mixed
from tests.input_pipeline.mixed import batches, column, entry, make_config

PACK = dict(tokens=9, rows=2, group=4)
PACKER = packing.Packer("text", 3, 2, 4, fill=0)


@pytest.fixture(scope="module", autouse=True)
def sources():
  mixed.put()


def best_fit(lengths, bins, size):
  """Whether the longest first, each where it leaves least room, all fit."""
  room = [size] * bins
  for length in sorted(lengths, reverse=True):
    fitting = [i for i in range(bins) if room[i] >= length]
    if not fitting:
      return False
    room[min(fitting, key=lambda i: room[i])] -= length
  return True


@pytest.mark.parametrize("seed", range(40))
def test_random_plans(seed):
  rng = np.random.default_rng(seed)
  rows, bins, groups = rng.integers(1, 6), rng.integers(1, 6), rng.integers(1, 4)
  tokens, group = int(rng.integers(2, 9)), rows * bins
  size = rows * tokens
  # From mostly short ones to mostly too long ones.
  lengths = np.minimum(rng.geometric(rng.uniform(0.1, 0.6), groups * group) - 1, size)
  start, kept = packing.plan(lengths, tokens, rows, group)
  assert start.dtype == np.int32 and (kept >= 0).all() and (kept <= lengths).all()
  for g in range(groups):
    own = slice(g * group, (g + 1) * group)
    used = np.zeros(group * tokens, int)
    for first, n in zip(start[own], kept[own]):
      assert not n or first // size == (first + n - 1) // size  # in one bin
      used[first : first + n] += 1
    assert used.max() <= 1 and used.sum() == kept[own].sum()  # each once, no overlap
    cut = kept[own] < lengths[own]
    assert (kept[own][cut] >= tokens).all()  # no short one is cut
    assert cut.any() != best_fit(lengths[own], bins, size)
    for first in start[own][cut]:  # and none that had room
      assert used.reshape(bins, size)[first // size].all()


def test_what_is_cut_ends_as_it_ended():
  ids = np.array([[5, 6, 7, 8, 9, 2], [5, 2, 0, 0, 0, 0]] * 2, np.int32)
  ids[2] = [3, 3, 3, 3, 3, 2]
  grams = np.arange(8, dtype=np.int32).reshape(4, 2)
  batch = dict(text=np.concatenate([ids, grams], axis=1), text_mask=ids > 0)
  before = {k: v.copy() for k, v in batch.items()}
  out = PACKER(batch)
  # 16 tokens in two bins of 6: one long text each, cut to what the other leaves.
  np.testing.assert_array_equal(out["text_mask"].sum(axis=1), [4, 2, 4, 2])
  np.testing.assert_array_equal(out["text"][0], [5, 6, 7, 2, 0, 0, 0, 1])
  np.testing.assert_array_equal(out["text"][2], [3, 3, 3, 2, 0, 0, 4, 5])
  np.testing.assert_array_equal(out["text"][1::2], before["text"][1::2])
  np.testing.assert_array_equal(out["text_pack"][:, 1], [2, 0, 2, 0])
  assert out["text_pack"].dtype == np.int32 and out["text"].dtype == np.int32
  for key, value in before.items():  # the loader's own arrays
    np.testing.assert_array_equal(batch[key], value)


def test_frames_are_cut_by_whole_columns_of_patches():
  model = base.get_config().model
  sound = dict(size=(12, 4, 1), patch=(2, 2), pool="cls", pack=dict(tokens=6, group=4))
  model.modalities = dict(sound=base.modality(**sound))
  (m,) = configs.modalities(model)
  config = dataclasses.make_dataclass("C", ["model", "data"])(model, {})
  (packer,) = packing.packers(config)
  assert packer.step == (2, m.row) and packer.extra == m.extra
  mask = np.arange(12) < np.array([[12], [12], [3], [0]])
  out = packer(dict(sound=np.zeros((4, 12, 4), np.float32), sound_mask=mask))
  # Of 13, 13, 5 and 1 tokens one bin takes 24: 10 and 8 of the first two, or so.
  lengths = packer._lengths(out["sound_mask"])
  np.testing.assert_array_equal(lengths + out["sound_pack"][:, 1], [13, 13, 5, 1])
  np.testing.assert_array_equal(lengths, [9, 9, 5, 1])
  assert not out["sound_mask"][:2, 8:].any() and out["sound_mask"][:2, :8].all()


def test_batches_that_cannot_be_packed(tokenizer):
  ids = np.ones((6, 6), np.int32)
  with pytest.raises(ValueError, match=r"6 % 4 = 2"):
    PACKER(dict(text=ids, text_mask=ids > 0))
  with pytest.raises(ValueError, match=r"no\s+'text_mask'"):
    PACKER(dict(text=ids))
  assert PACKER(dict(image=ids)).keys() == {"image"}
  config = make_config(tokenizer, buckets=(4,))
  config.model.modalities.text.pack.update(PACK)
  with pytest.raises(ValueError, match=r"config\.data\.buckets = \(4,\)"):
    pipeline.train_loader(config, process_index=0, process_count=1)


MIXTURE = (entry("pairs", 2), entry("images", 1), entry("texts", 1))


@pytest.mark.parametrize("mixture", [(), MIXTURE], ids=["single", "mixture"])
def test_the_stream_is_the_unpacked_one_on_any_hosts(tokenizer, mixture):
  plain = make_config(tokenizer, mixture)
  config = make_config(tokenizer, mixture)
  config.model.modalities.text.pack.update(PACK)
  want, loader = batches(plain, 5)
  want = [packing.packed(packing.packers(config), b) for b in want]
  got, packed = batches(config, 5)
  assert packed.state() == loader.state()
  cut = column(got, "text_pack")[:, 1]
  assert 0 < cut.sum() < column(got, "text_mask").sum() / 4  # some, not most
  state = json.loads(json.dumps(batches(config, 2)[1].state()))
  parts = [batches(config, 3, index, 2, state)[0] for index in range(2)]
  hosts = [
    {k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(*parts, strict=True)
  ]
  for one, other in zip([*got, *hosts], [*want, *want[2:]], strict=True):
    assert one.keys() == other.keys()
    for key in one:
      np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def test_evaluation_is_not_packed(tokenizer):
  config = make_config(tokenizer)
  config.model.modalities.text.pack.update(PACK)
  found = pipeline.eval_batches(
    config, split="train", batch_size=8, process_index=0, process_count=1
  )
  assert "text_pack" not in next(iter(found))
