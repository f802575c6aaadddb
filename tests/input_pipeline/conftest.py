"""A small set of pairs in an ArrayRecord file, and the config that reads it."""

import pytest

from input_pipeline import pipeline
from input_pipeline.sources import arrayrecord
from tests.input_pipeline import pairs


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("pairs")


@pytest.fixture(scope="session")
def paths(folder):
  path = str(folder / "train.arrayrecord")
  classes = {"kind": ("a", "b", "c")}
  arrayrecord.write_records(path, map(pairs.pair, range(50)), shards=2, classes=classes)
  return path + "*"


@pytest.fixture(scope="session")
def tokenizer(folder, paths):
  path = str(folder / "tokenizer.model")
  pipeline.prepare(pairs.make_config(paths, path), str(folder))
  return path


@pytest.fixture
def config(paths, tokenizer):
  """Returns a function: changes of config.data -> config of the 50 pairs."""
  return lambda **data: pairs.make_config(paths, tokenizer, **data)


@pytest.fixture
def broken(tmp_path, tokenizer):
  """Returns a function: (count, {index: changes}) -> config of partly broken pairs."""

  def make(count, changes, **data):
    path = tmp_path / "broken.arrayrecord"
    examples = (pairs.pair(i) | changes.get(i, {}) for i in range(count))
    arrayrecord.write_records(str(path), examples)
    return pairs.make_config(path, tokenizer, **data)

  return make
