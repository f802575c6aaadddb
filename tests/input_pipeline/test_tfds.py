"""TFDS: a dataset built and read as ArrayRecord, with no TensorFlow installed."""

import importlib
import pickle
import sys
import warnings

import pytest

from input_pipeline import pipeline
from input_pipeline.sources import tfds as tfds_source
from tests.input_pipeline.pairs import make_config

BUILDER = '''
"""A tiny dataset."""
import io

import numpy as np
from PIL import Image
import tensorflow_datasets as tfds

F = tfds.features


class TinyPairs(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict({
      "picture": F.Image(shape=(None, None, 3)),
      "text": F.Text(),
      "more": F.Sequence({"text": F.Text()}),
      "kind": F.ClassLabel(names=["cat", "dog"]),
    }))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(24), "test": self._generate_examples(6)}

  def _generate_examples(self, n):
    for i in range(n):
      file = io.BytesIO()
      Image.fromarray(np.full((10, 10, 3), i, np.uint8)).save(file, "PNG")
      file.seek(0)
      yield i, {"picture": file, "text": f"number {i}", "kind": i % 2,
                "more": [{"text": f"n {i}"}, {"text": f"{i}"}]}
'''


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  folder = tmp_path_factory.mktemp("tfds")
  (folder / "tiny_pairs.py").write_text(BUILDER)
  sys.path.insert(0, str(folder))
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # of TFDS while it writes
      module = importlib.import_module("tiny_pairs")
      builder = module.TinyPairs(data_dir=folder / "data", file_format="array_record")
      builder.download_and_prepare()
  finally:
    sys.path.remove(str(folder))
  return folder / "data"


FEATURES = {"picture": "image", "text": "captions", "kind": "label_kind"}


def test_reads_without_tensorflow(prepared):
  source = tfds_source.Source(
    name="tiny_pairs", data_dir=str(prepared), features=FEATURES
  )
  assert len(source) == 24
  examples = [source[i] for i in range(24)]
  assert all(e["image"].startswith(b"\x89PNG") for e in examples)
  texts = {f"number {i}": i % 2 for i in range(24)}
  read = {_text(e["captions"]): e["label_kind"] for e in examples}
  assert read == texts
  assert source.classes == {"kind": ("cat", "dog")}
  assert "tensorflow" not in sys.modules
  again = pickle.loads(pickle.dumps(source))
  assert again == source
  assert again[3] == source[3]


def _text(value):
  return value.decode() if isinstance(value, bytes) else value


def test_slices_folders_and_sequences(prepared):
  source = tfds_source.Source(
    name=str(prepared / "tiny_pairs" / "1.0.0"),
    split="test[:50%]",
    features={"more/text": "captions"},
  )
  assert len(source) == 3
  texts = [_text(t) for t in source[0]["captions"]]
  assert len(texts) == 2
  assert texts[0] == f"n {texts[1]}"


def test_errors(prepared):
  with pytest.raises(ValueError, match="'nothing_here' is not a TFDS dataset here"):
    tfds_source.Source(name="nothing_here", data_dir=str(prepared))
  with pytest.raises(ValueError, match="has no 'pictures'; did you mean picture"):
    tfds_source.Source(
      name="tiny_pairs", data_dir=str(prepared), features={"pictures": "image"}
    )
  source = tfds_source.Source(name="tiny_pairs", data_dir=str(prepared), split="dev")
  with pytest.raises(ValueError, match="split 'dev'"):
    len(source)


def test_through_the_pipeline(prepared, tmp_path):
  config = make_config("", "{workdir}/t.model", threads=0)
  config.data.source = "tfds"
  config.data.options = {
    "name": "tiny_pairs",
    "data_dir": str(prepared),
    "features": FEATURES,
  }
  config.model.modalities.text.vocab = 276
  config = pipeline.prepare(config, str(tmp_path))
  loader = pipeline.train_loader(config, process_index=0, process_count=1)
  batch = next(loader)
  assert batch["image"].shape == (12, 16, 16, 3)
  assert set(batch["label_kind"]) == {0, 1}
