"""Files beside weights: what they ask for comes along, or a line says why not."""

import json

import numpy as np
from PIL import Image
import pytest

from input_pipeline import subwords, tokenizer
from model.interop import convert, files
from tests.model.interop import models, peers
from tools import convert as tool
from training import foreign, pretrained

KINDS = {f"{k.library}-{k.architecture}": k for k in convert.FORMATS}
BERT, CLIP = KINDS["hf-BertModel"], KINDS["hf-CLIPModel"]
WORDS = (
  "[PAD]",
  "[UNK]",
  "[CLS]",
  "[SEP]",
  "[MASK]",
  "a",
  "cat",
  "Cat",
  "é",
  "e",
  "猫",
)
SAID = (
  {},
  {"do_lower_case": False},
  {"do_lower_case": True, "strip_accents": False},
  {"do_lower_case": False, "strip_accents": True},
  {"tokenize_chinese_chars": False},
)
TEXT = "a Cat é 猫a"
# Of `TEXT` without the ends, in the order of `SAID`.
IDS = ([5, 6, 9, 10, 5], [5, 7, 8, 10, 5], [5, 6, 8, 10, 5], [5, 7, 9, 10, 5])
IDS += ([5, 6, 9, 1],)


def bert(folder, said, normalizer=None):
  """Writes vocab.txt, or a tokenizer.json of that normalizer's options; reads it."""
  (folder / "tokenizer_config.json").write_text(json.dumps(said))
  (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  if normalizer is not None:
    model = json.loads(subwords.bert_json("\n".join(WORDS)))
    model["normalizer"] |= normalizer
    (folder / "tokenizer.json").write_text(json.dumps(model))
  return foreign.words_of(folder, BERT, {})


def ids(words):
  return tokenizer.check(words.data, words.file, len(WORDS)).encode(TEXT)


@pytest.mark.parametrize("said, want", [*zip(SAID, IDS, strict=True)])
def test_normalizer_of_bert(tmp_path, said, want):
  """Of transformers' classes of BERT, tokenizer_config.json wins."""
  pytest.importorskip("tokenizers")
  assert ids(bert(tmp_path, said)) == want
  other = {"lowercase": not said.get("do_lower_case", True)}
  named = said | {"tokenizer_class": "BertTokenizerFast"}
  assert ids(bert(tmp_path, named, other)) == want
  generic = said | {"tokenizer_class": "PreTrainedTokenizerFast"}
  words = bert(tmp_path, generic, {"lowercase": False})
  assert ids(words) == IDS[1] and words.at == tmp_path / "tokenizer.json"


@pytest.mark.parametrize("said", SAID)
def test_normalizer_of_bert_is_that_of_transformers(tmp_path, said):
  _, transformers = peers.library("transformers")
  (tmp_path / "config.json").write_text('{"model_type": "bert"}')
  named = said | {"tokenizer_class": "BertTokenizer"}
  other = {"lowercase": True, "handle_chinese_chars": False}
  for given in ((said,), (named,), (named, other)):
    got = ids(bert(tmp_path, *given))
    with peers.quiet():
      there = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert got == there(TEXT)["input_ids"][1:-1]


def test_a_tokenizer_that_was_changed_is_what_is_kept(tmp_path):
  pytest.importorskip("tokenizers")
  config = models.one_tower("bert")
  config.model.modalities.text.vocab = len(WORDS)
  state, card = convert.save(config, models.filled(config), "hf")
  source, to = tmp_path / "bert", tmp_path / "ours"
  files.write(source, "hf", state, {"config.json": card})
  words = bert(source, {"do_lower_case": False}, {})
  assert words.at is None
  assert foreign.keep(words).read_bytes() == words.data
  tool.main(["--from", str(source), "--to", str(to), "--format", "concord"])
  assert (to / "tokenizer.json").read_bytes() == words.data
  assert (to / "tokenizer_config.json").exists()


def broken(folder, said=None, **beside):
  folder.mkdir()
  names = ("c", "a", "t</w>", "ca", "cat</w>", subwords.START, subwords.END)
  vocab = json.dumps({name: i for i, name in enumerate(names)})
  beside = {"merges.txt": "c a\nca t</w>\n", "vocab.json": vocab} | beside
  for name, text in beside.items():
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
  (folder / "tokenizer_config.json").write_text(json.dumps(said or {}))
  return folder


def test_broken_tokenizers_are_a_line(tmp_path):
  pytest.importorskip("tokenizers")

  def fails(match, name="", said=None, kind=CLIP, **beside):
    where = broken(tmp_path / str(len([*tmp_path.iterdir()])), said, **beside)
    with pytest.raises(ValueError, match=match) as e:
      foreign.words_of(where / name, kind, {})
    assert "\n" not in str(e.value)

  fails(r"merges\.txt is not a tokenizer: expected a folder", "merges.txt")
  fails(r"vocab\.json is not a tokenizer \(not a tokenizer\.json", "vocab.json")
  fails(r"merges\.txt holds the line 'abc', expected two", **{"merges.txt": "abc\n"})
  fails(r"vocab\.json and merges\.txt are of no", **{"merges.txt": "c a\na x\n"})
  fails(r"vocab\.json and merges\.txt are of no", **{"vocab.json": '{"a": "b"}'})
  fails(r"merges\.txt is not a text", **{"merges.txt": b"\xff\xfe"})
  for odd in (["a"], 3, {"a": "b"}):
    fails(
      r"zer_config\.json: pad_token = .*, expected a string", said=dict(pad_token=odd)
    )
  for odd in ("false", 3):
    fails(r"zer_config\.json: do_lower_case = ", said=dict(do_lower_case=odd))


def siglip(folder, preprocessor):
  config = models.siglip()
  state, card = convert.save(config, models.filled(config), "hf")
  beside = {"config.json": card, "preprocessor_config.json": preprocessor}
  files.write(folder, "hf", state, beside)
  return config


def test_patches_leave_a_rest_of_images(tmp_path):
  siglip(tmp_path / "x", {"size": {"height": 11, "width": 11}})
  found = foreign.read(tmp_path / "x")
  assert dict(found.config.data.eval_transforms)["resize"]["rest"] == 3
  flags = ["--from", str(tmp_path / "x"), "--format", "concord", "--to"]
  for more, rest in (([], 3), (["--size", "16"], None), (["--patch", "2"], None)):
    to = tmp_path / "-".join(["to", *more])
    tool.main([*flags, str(to), *more])
    steps = json.loads((to / "config.json").read_text())["data"]["eval_transforms"]
    assert dict(steps)["resize"].get("rest") == rest


@pytest.mark.parametrize("side", [8, 11])
def test_embeddings_of_images_are_those_of_transformers(tmp_path, side):
  torch, transformers = peers.library("transformers")
  siglip(tmp_path, {})
  rng = np.random.default_rng(0)
  pictures = [
    Image.fromarray(rng.integers(0, 255, (h, w, 3), np.uint8))
    for h, w in ((9, 20), (11, 11))
  ]
  with peers.quiet():
    size = {"height": side, "width": side}
    pixels = transformers.SiglipImageProcessorPil(size=size)
    pixels.save_pretrained(tmp_path)
    there = transformers.SiglipModel.from_pretrained(tmp_path).eval()
    with torch.no_grad():
      given = pixels(pictures, return_tensors="pt")
      want = there.vision_model(**given).pooler_output.numpy()
  want /= np.linalg.norm(want, axis=-1, keepdims=True)
  got = pretrained.load(tmp_path).embed(image=pictures)["image"]
  np.testing.assert_allclose(got, want, atol=1e-5)
