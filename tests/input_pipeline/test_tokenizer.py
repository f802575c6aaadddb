"""The tokenizer: deterministic, complete (bytes), and checked against the model."""

import pytest

from input_pipeline import pipeline
from input_pipeline import tokenizer as tokenizers
from tests.input_pipeline.pairs import WORDS, make_config

CAPTIONS = [f"{a} {b}" for a in WORDS for b in WORDS] + ["猫と犬", "кот и собака"]


def test_same_captions_same_bytes(tmp_path):
  orders = (CAPTIONS, CAPTIONS[::-1] + CAPTIONS[:5], [f" {c} " for c in CAPTIONS])
  paths = [str(tmp_path / str(i) / "t.model") for i in range(3)]
  for path, captions in zip(paths, orders):
    tokenizers.train_tokenizer(iter(captions), path, 300)
  assert len({tokenizers.fingerprint(p) for p in paths}) == 1
  assert [p.name for p in (tmp_path / "0").iterdir()] == ["t.model"]  # no .part left


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_any_text_survives(tmp_path, kind):
  path = tokenizers.train_tokenizer(CAPTIONS, str(tmp_path / "t.model"), 300, kind=kind)
  model = tokenizers.load(path, 300)
  for text in ("red cat", "猫", "ਪੰਜਾਬੀ", "🦄 x", "ﬁ"):
    ids = model.encode(text)
    assert all(3 < i < 300 for i in ids)  # neither padding nor unknown
  assert model.decode(model.encode("RED ਪ")) == "red ਪ"
  assert model.encode("Red CAT") == model.encode("red cat")


def test_vocabulary_is_checked(tokenizer, tmp_path):
  with pytest.raises(ValueError, match=r"300 ids.*modalities\.text\.vocab = 400"):
    tokenizers.load(tokenizer, 400)
  with pytest.raises(ValueError, match=r"modalities\.text\.vocab = 99999"):
    tokenizers.train_tokenizer(CAPTIONS, str(tmp_path / "t.model"), 99_999)
  with pytest.raises(ValueError, match=r"modalities\.text\.vocab = 100 "):
    tokenizers.train_tokenizer(CAPTIONS, str(tmp_path / "t.model"), 100)
  with pytest.raises(ValueError, match="no captions"):
    tokenizers.train_tokenizer(["", " "], str(tmp_path / "t.model"), 300)
  (tmp_path / "junk").write_bytes(b"junk")
  with pytest.raises(ValueError, match="not a sentencepiece model"):
    tokenizers.load(str(tmp_path / "junk"), 300)
  with pytest.raises(FileNotFoundError, match="prepare"):
    tokenizers.load(str(tmp_path / "none"), 300)


def test_prepare_trains_once_and_changes_a_copy(paths, tmp_path):
  config = make_config(paths, "{workdir}/tokenizer.model")
  prepared = pipeline.prepare(config, str(tmp_path))
  path = tmp_path / "tokenizer.model"
  assert prepared.data.tokenizer == str(path)
  assert config.data.tokenizer == "{workdir}/tokenizer.model"
  stamp = path.stat().st_mtime_ns
  pipeline.prepare(config, str(tmp_path))
  assert path.stat().st_mtime_ns == stamp
  config.model.modalities.text.vocab = 290
  with pytest.raises(ValueError, match=r"300 ids.*vocab = 290"):
    pipeline.prepare(config, str(tmp_path))
  with pytest.raises(FileNotFoundError, match="prepare"):
    pipeline.train_loader(config, process_index=0, process_count=1).__next__()


def test_prepare_without_captions_says_so(broken, tmp_path):
  config = broken(4, {})
  config.data.tokenizer = str(tmp_path / "new.model")
  config.data.source = "arrayrecord"
  from input_pipeline.sources import arrayrecord

  path = str(tmp_path / "plain.arrayrecord")
  arrayrecord.write_records(path, [{"image_bytes": b"x"}])
  config.data.options.paths = path
  with pytest.raises(ValueError, match=r"have no 'captions', only \['image_bytes'\]"):
    pipeline.prepare(config, str(tmp_path))


def test_tokenize_for_evaluators(config):
  rows = pipeline.tokenize(config(), ["red cat", "dog"])
  assert rows["text"].shape == rows["text_mask"].shape == (2, 12)
  with pytest.raises(ValueError, match="cannot tokenize '': empty caption"):
    pipeline.tokenize(config(), ["red", ""])
  with pytest.raises(ValueError, match="no tokenize for 'audio'"):
    pipeline.tokenize(config(), ["red"], modality="audio")
