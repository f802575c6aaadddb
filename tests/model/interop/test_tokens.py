"""Ids of texts are those of the peers' own tokenizers, on texts that are hard to read.

Their files go the way of a converted checkpoint: `training.foreign` finds out what is
to be done, and `tokenize` does it.
"""

import gzip
import io
import pathlib
import types

import numpy as np
import pytest
import sentencepiece

from input_pipeline import subwords
from input_pipeline.transforms import tokenize
from model.interop import convert
from tests.model.interop import peers
from training import foreign

LENGTH = 16
TEXTS = (
  "a photo of a cat",
  "A Photo,  of\ta\nCAT!?",
  "",
  "   ",
  "!",
  "it's we'll I'D don't 'twas ''s",
  "naïve café Ünïcödé e\u0301 \u00e9 ﬁ Ⅷ ½ 10,000.5",
  "猫と犬 кот и собака ਪੰਜਾਬੀ مرحبا שלום",
  "🦄 👩‍👩‍👧 🏳️‍🌈 x\u200dy \ufeff\u200b\u00ad",
  "snake_case kebab-case <b>html</b> &amp;lt; &lt;",
  "\u201cquotes\u201d \u2018single\u2019 \u2014 \u2026 âœ” schÃ¶n",
  "\u017f '\u017f İ ẞ ΑΣ",
  "word " * 40,
  "x" * 200,
)
KINDS = {f"{k.library}-{k.architecture}": k for k in convert.FORMATS}


def ours(folder, kind, vocab, given=None, **modality):
  words = foreign.words_of(folder, KINDS[kind], given or {})
  path = folder / words.file
  if not path.exists():
    path.write_bytes(words.data)
  transform = tokenize.Transform(
    tokenizer=str(path), length=LENGTH, vocab=vocab, **{"pad": -1} | modality,
    **words.options,
  )  # fmt: skip
  rows = []
  for text in TEXTS:
    try:
      rows.append(transform({"caption": text}, np.random.default_rng(0)))
    except tokenize.Drop as e:
      assert e.reason == "empty caption"
      rows.append(transform.blank())
  return [np.stack([row[key] for row in rows]) for key in transform.writes]


def theirs(tokenizer, texts=TEXTS):
  out = tokenizer(list(texts), padding="max_length", max_length=LENGTH, truncation=True)
  return np.asarray(out["input_ids"]), np.asarray(out["attention_mask"], bool)


def agree(got, want):
  for text, a, b in zip(TEXTS, got, want):
    assert a.tolist() == b.tolist(), text[:40]


@pytest.fixture(scope="module")
def bpe():
  """CLIP's vocabulary, which open_clip ships."""
  _, open_clip = peers.library("open_clip")
  return open_clip.tokenizer


def test_open_clip(bpe, tmp_path):
  path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
  path.write_bytes(pathlib.Path(bpe.default_bpe()).read_bytes())
  with peers.quiet():
    want = bpe.SimpleTokenizer(context_length=LENGTH)(list(TEXTS)).numpy()
  end = want.max()
  got, mask = ours(tmp_path, "open_clip-CLIP", 49_408, stop=end)
  agree(got, want)
  assert (mask.sum(1) == 1 + (want == end).argmax(1)).all()
  model = subwords.from_merges(path.read_bytes())
  assert model.decode(got[0][mask[0]]) == "a photo of a cat"
  assert model.piece(320) == "a</w>"
  with pytest.raises(ValueError, match="merges of CLIP's tokenizer: 1, expected 48894"):
    subwords.from_merges(gzip.compress(b"#version\na b"))


def test_clip_of_transformers(bpe, tmp_path):
  _, transformers = peers.library("transformers")
  simple = bpe.SimpleTokenizer()
  vocab = dict(simple.encoder)
  for old, new in (
    ("<start_of_text>", subwords.START),
    ("<end_of_text>", subwords.END),
  ):
    vocab[new] = vocab.pop(old)
  merges = list(simple.bpe_ranks)
  with peers.quiet():
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=merges)
    tokenizer.save_pretrained(tmp_path)
    want, real = theirs(tokenizer)
  got, mask = ours(tmp_path, "hf-CLIPModel", 49_408, stop=want.max())
  agree(got, want)
  np.testing.assert_array_equal(mask, real)
  # The files that transformers wrote until its version 4.
  lines = "#version: 0.2\n" + "\n".join(" ".join(m) for m in merges)
  older = subwords.from_json(subwords.clip_json(vocab, lines).encode())
  got = [
    [*older.begin, *older.encode(text), *older.end][: LENGTH - 1] for text in TEXTS
  ]
  agree([np.asarray(row) for row in got], [w[: len(g)] for g, w in zip(got, want)])


def test_siglip_of_transformers(tmp_path):
  _, transformers = peers.library("transformers")
  model = io.BytesIO()
  captions = [
    f"{a} {b} {i}" for i in range(99) for a in "red café" for b in ("кот", "猫")
  ]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(captions), model_writer=model, vocab_size=60,
    pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False, minloglevel=2,
  )  # fmt: skip
  (tmp_path / "x.model").write_bytes(model.getvalue())
  with peers.quiet():
    tokenizer = transformers.SiglipTokenizer(str(tmp_path / "x.model"))
    tokenizer.save_pretrained(tmp_path)
    want, _ = theirs(tokenizer)
  got, mask = ours(tmp_path, "hf-SiglipModel", tokenizer.vocab_size)
  agree(got, want)
  assert mask.all()  # it reads its padding, and pools the last position


def test_siglip2_of_transformers(tmp_path):
  _, transformers = peers.library("transformers")
  names = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
  names += [f"<0x{i:02X}>" for i in range(256)] + list("▁aopht.cé") + ["ph", "pho"]
  vocab = {name: i for i, name in enumerate(names)}
  with peers.quiet():
    tokenizer = transformers.Siglip2Tokenizer(
      vocab=vocab, merges=[("p", "h"), ("ph", "o")], padding_side="right",
      add_eos_token=True,
    )  # fmt: skip
    tokenizer.save_pretrained(tmp_path)
    want, _ = theirs(tokenizer)
  got, _ = ours(tmp_path, "hf-SiglipModel", len(vocab))
  agree(got, want)
  assert (want != 0).any(axis=1).sum() >= 11


def test_bert_of_transformers(tmp_path):
  _, transformers = peers.library("transformers")
  words = "[PAD] [UNK] [CLS] [SEP] [MASK] a photo of cat ##s x ##x ! ' it s 猫 cafe"
  vocab = {name: i for i, name in enumerate(words.split())}
  with peers.quiet():
    tokenizer = transformers.BertTokenizer(vocab=vocab)
    tokenizer.save_pretrained(tmp_path)
    want, real = theirs(tokenizer)
  got, mask = ours(tmp_path, "hf-CLIPModel", len(vocab), pad=0)
  agree(got, want)
  np.testing.assert_array_equal(mask, real)
  (tmp_path / "tokenizer.json").unlink()
  (tmp_path / "vocab.txt").write_text("\n".join(words.split()) + "\n")
  agree(ours(tmp_path, "hf-CLIPModel", len(vocab), pad=0)[0], want)


def test_a_tokenizer_that_pads_on_the_left_is_refused(tmp_path):
  (tmp_path / "tokenizer_config.json").write_text('{"padding_side": "left"}')
  kind = types.SimpleNamespace(library="hf", architecture="SiglipModel")
  with pytest.raises(ValueError, match="padding_side = 'left', expected 'right'"):
    foreign.words_of(tmp_path, kind, {})
