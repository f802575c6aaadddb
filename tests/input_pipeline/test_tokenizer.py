"""The tokenizer: deterministic, complete (bytes), and checked against the model."""

import json
import re

import numpy as np
import pytest

from input_pipeline import pipeline, subwords
from input_pipeline import tokenizer as tokenizers
from input_pipeline.transforms import tokenize
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


def test_tokenize_ends_pads_and_masks_as_it_is_told(tokenizer):
  def run(text, **options):
    transform = tokenize.Transform(tokenizer=tokenizer, vocab=300, length=6, **options)
    out = transform({"caption": text}, np.random.default_rng(3))
    return out["text"].tolist(), out["text_mask"].tolist()

  plain = run("a")[0]
  n = plain.index(tokenizers.END)
  ids, mask = run("a", begin=(7,), end=(8, 9), fill=9, pad=-1, stop=8)
  assert ids[: n + 3] == [7, *plain[:n], 8, 9] and set(ids[n + 3 :]) <= {9}
  assert mask == [i < n + 2 for i in range(6)]
  assert run("a", pad=-1)[1] == [True] * 6
  long = run("red cat tree dog blue", begin=(7,))[0]
  assert (long[0], long[-1]) == (7, tokenizers.END)
  assert run(" A, &", clean="plain")[0] == plain
  blank = tokenize.Transform(tokenizer=tokenizer, vocab=300, length=3, ngrams=2).blank()
  assert blank["text"].tolist() == [tokenizers.END, 0, 0, 0, 0]
  assert blank["text_mask"].tolist() == [True, False, False]
  with pytest.raises(ValueError, match=r"padded with 9 .*text\.pad = 0.*set it to 9"):
    run("a", fill=9)
  with pytest.raises(ValueError, match=r"clean = 'plian': did you mean plain"):
    run("a", clean="plian")


def test_tokenizers_of_other_libraries(tmp_path):
  pytest.importorskip("tokenizers")
  names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "##s"]
  path = tmp_path / "tokenizer.json"
  path.write_text(subwords.bert_json("\n".join(names) + "\n", lowercase=True))
  model = tokenizers.load(str(path), 8)
  assert (model.vocab, model.begin, model.end, model.fill) == (8, (2,), (3,), 0)
  assert model.encode("A  Cats") == [5, 6, 7] and model.encode("") == []
  assert model.decode([2, 5, 6, 7, 3, 0]) == "a cats" and model.piece(7) == "##s"
  assert tokenizers.load(str(path), 8 + tokenizers.SPARE).vocab == 8
  for vocab in (7, 9 + tokenizers.SPARE):
    with pytest.raises(ValueError, match=rf"has 8 ids, but .*text\.vocab = {vocab}"):
      tokenizers.load(str(path), vocab)
  with pytest.raises(ValueError, match="nbest = 4, and this tokenizer has one"):
    model.encode("a", nbest=4)
  said = json.loads(path.read_text()) | {"padding": None, "post_processor": None}
  bare = subwords.from_json(json.dumps(said).encode())
  assert (bare.begin, bare.end) == ((), ())
  path.write_text("{}")
  with pytest.raises(ValueError, match=r"nor a tokenizer\.json"):
    tokenizers.load(str(path), 8)

  merges = "#version: 0.2\nc a\nca t</w>\n"
  names = ["c", "a", "t</w>", "ca", "cat</w>", "s</w>", subwords.START, subwords.END]
  clip = subwords.clip_json({n: i for i, n in enumerate(names)}, merges)
  model = subwords.from_json(clip.encode())
  assert model.encode("CAT  cat") == [4, 4]
  assert (model.begin, model.end) == ((6,), (7,)) and model.id("ca") == 3
  assert model.decode([6, 4, 4, 7]) == "cat cat"


def test_the_vocabulary_that_a_refusal_names_suits(tmp_path):
  animals, fields = ("cat", "dog", "fox", "hen", "owl"), ("red", "blue", "green")
  few = [f"a drawing of animal {a} on a {f} field" for a in animals for f in fields]
  path = str(tmp_path / "few.model")
  with pytest.raises(ValueError, match=r"vocab = 512 .* it can be \d+ at most") as e:
    tokenizers.train_tokenizer(few, path, 512)
  most = int(re.search(r"can be (\d+)", str(e.value))[1])
  tokenizers.train_tokenizer(few, path, most)
  assert tokenizers.load(path, most).vocab == most
