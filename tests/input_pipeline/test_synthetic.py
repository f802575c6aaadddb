"""Made-up examples: every modality, through the transforms of the recipes."""

import importlib
import pickle

import numpy as np
import pytest

from input_pipeline import pipeline
from input_pipeline.sources import synthetic
from model.shapes import example_spec

RECIPES = ("sound_text", "speech_tuxpaint", "video_text", "series_text", "music_text")


def test_examples_are_of_their_index_and_split_and_differ_within_a_kind():
  train, test = synthetic.Source(), synthetic.Source(split="test")
  a, b = train[3], train[3]
  for key in a:
    np.testing.assert_array_equal(a[key], b[key])
  for other in (train[15], test[3]):
    assert other["id"] == a["id"] == 3
    for key in ("image", "audio_bytes", "video_bytes", "values"):
      assert not np.array_equal(np.asarray(a[key]), np.asarray(other[key])), key
  assert len(train.classes["kind"]) == 12 and train[11]["label_kind"] == 11
  with pytest.raises(IndexError):
    train[240]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  return str(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_make_batches_of_what_their_models_read(name, workdir):
  config = importlib.import_module(f"configs.{name}").get_config("runlocal")
  config.data.threads = 0
  config.batch_size = 8
  config = pipeline.prepare(config, workdir)
  made = pipeline.transforms(config, "transforms")
  assert pickle.loads(pickle.dumps(made)) == made, "workers get copies"
  loader = pipeline.train_loader(config, process_index=0, process_count=1)
  batch = next(iter(loader))
  loader.close()
  evaluated = pipeline.eval_batches(
    config, split="test", batch_size=8, process_index=0, process_count=1
  )
  again = next(iter(evaluated))
  for m, entry in config.model.modalities.items():
    shape, dtype = example_spec(entry)
    for made in (batch, again):
      # A single channel may be left out.
      assert made[m].dtype == dtype
      assert made[m].shape in ((8, *shape), (8, *shape[:-1])), m
      if m != "image":
        real = made[f"{m}_mask"]
        assert real.any(axis=1).all()
        if m in ("audio", "video", "series"):
          assert not real.all(), "lengths vary"
