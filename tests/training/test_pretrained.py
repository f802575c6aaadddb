"""A checkpoint in a few lines: what comes out is what the towers give, on any mesh."""

import io
import json
import shutil

import jax
import numpy as np
from PIL import Image
import pytest
import sentencepiece

from input_pipeline import pipeline
from model.encoders import towers
from model.interop import convert, files
from tests.model.interop import models
from tools import convert as tool
from training import foreign, pretrained

WORDS = ("red", "green", "blue", "cat", "dog", "tree", "house", "bird", "old", "new")
PICTURES = [
  Image.fromarray(np.random.default_rng(i).integers(0, 255, (9, 12, 3), np.uint8))
  for i in range(5)
]


def pieces():
  """A sentencepiece model whose ids are not ours, as SigLIP's are not."""
  model = io.BytesIO()
  lines = [f"{a} {b}" for a in WORDS for b in WORDS]
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(lines), model_writer=model, vocab_size=28, pad_id=0,
    eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
  )  # fmt: skip
  return model.getvalue()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A folder of transformers, with tokenizer and preprocessing."""
  folder = tmp_path_factory.mktemp("siglip")
  config = models.siglip()
  config.model.modalities.text.vocab = 28
  state, card = convert.save(config, models.filled(config), "hf")
  pixels = dict(image_mean=[0.2, 0.3, 0.4], image_std=[0.5] * 3, resample=2)
  said = dict(tokenizer_class="SiglipTokenizer", pad_token="</s>")
  beside = {
    "config.json": card,
    "preprocessor_config.json": pixels,
    "tokenizer_config.json": said,
  }
  files.write(folder, "hf", state, beside)
  (folder / "spiece.model").write_bytes(pieces())
  return folder


@pytest.fixture(scope="module")
def ours(source, tmp_path_factory):
  """The same, converted, in a folder that has moved since."""
  first, then = (tmp_path_factory.mktemp(name) / "x" for name in ("a", "b"))
  tool.main(["--from", str(source), "--to", str(first), "--format", "concord"])
  shutil.move(first, then)
  return then


@pytest.fixture(scope="module")
def model(ours):
  return pretrained.load(ours)


def test_embeddings_are_the_towers_on_what_the_transforms_make(model):
  assert model.context.mesh.size == 8
  texts = ["Red, cat!", "", "  old dog  "]
  z = model.embed(image=PICTURES, text=texts)
  assert z["image"].shape == (5, 8) and z["text"].shape == (3, 8)
  pixels = []
  for picture in PICTURES:
    small = np.asarray(picture.resize((8, 8), Image.Resampling.BILINEAR))
    pixels.append(
      (small / np.float32(255) - np.float32([0.2, 0.3, 0.4])) / np.float32(0.5)
    )
  raw = sentencepiece.SentencePieceProcessor(model_proto=pieces())
  ids = np.ones((3, 5), np.int32)
  for row, text in zip(ids, ("red cat", "", "old dog")):
    found = [*raw.EncodeAsIds(text)[:4], 1]
    row[: len(found)] = found
  net = towers.build(model.config.model)
  params = {"params": jax.device_get(model.params["towers"])}
  batch = {"image": np.stack(pixels), "text": ids}
  one = {"image": np.float32, "text": np.int32}
  apply = jax.jit(lambda batch: net.apply(params, batch)[0])
  encoded = apply({m: x.astype(one[m]) for m, x in batch.items()})
  for m in batch:
    want = np.asarray(encoded[m].pooled)
    want = want / np.linalg.norm(want, axis=-1, keepdims=True)
    np.testing.assert_allclose(z[m], want, atol=2e-5)


def test_pictures_of_all_kinds_and_one_device(model, ours, tmp_path):
  one = pretrained.load(ours, devices=jax.devices()[:1])
  PICTURES[0].save(tmp_path / "x.png")
  kinds = [
    PICTURES[0],
    np.asarray(PICTURES[0]),
    str(tmp_path / "x.png"),
    (tmp_path / "x.png").read_bytes(),
    PICTURES[0].convert("RGBA"),
  ]
  z = one.embed(image=kinds)["image"]
  np.testing.assert_allclose(z, np.broadcast_to(z[0], z.shape), atol=1e-6)
  want = model.embed(image=PICTURES[:1])["image"]
  np.testing.assert_allclose(z[:1], want, atol=1e-5)
  small = model.embed(image=[np.zeros((8, 8, 3), np.float32)])["image"]
  assert small.shape == (1, 8)


def test_an_image_of_pillow_is_read_as_its_file_is(model):
  """A photo stands as its EXIF says, and 16 bits are scaled, not clipped."""
  exif = Image.Exif()
  exif[0x0112] = 6
  deep = Image.fromarray(np.arange(108, dtype=np.uint16).reshape(9, 12) * 600)
  for picture, options in (
    (PICTURES[0], dict(format="JPEG", exif=exif)),
    (deep, dict(format="PNG")),
  ):
    file = io.BytesIO()
    picture.save(file, **options)
    rows = (file.getvalue(), Image.open(io.BytesIO(file.getvalue())))
    want, got = (model._row("image", x)["image"] for x in rows)
    np.testing.assert_array_equal(got, want)
    assert want.std() > 0.1


def test_a_folder_of_another_library_is_read_as_it_is(model, source):
  other = pretrained.load(source, devices=jax.devices()[:1])
  z, want = (m.embed(image=PICTURES[:2], text=["red cat"]) for m in (other, model))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), z, want)


def test_classes_and_retrieval(model):
  z = model.embed(image=PICTURES, text=["a cat", "the cat", "a dog", "the dog"])
  got = model.classify(
    image=PICTURES, classes=["cat", "dog"], templates=("a {}", "the {}")
  )
  mean = z["text"].reshape(2, 2, -1).mean(1)
  mean /= np.linalg.norm(mean, axis=-1, keepdims=True)
  own = jax.device_get(model.params["objective"]["siglip"])
  logits = np.exp(own["log_scale"]) * z["image"] @ mean.T + own["bias"]
  np.testing.assert_allclose(got, 1 / (1 + np.exp(-logits)), atol=1e-5)

  texts = ["red cat", "old dog", "blue bird", "tree", "house"]
  table = model.retrieval(image=PICTURES, text=texts)
  z = model.embed(image=PICTURES, text=texts)
  similar = z["image"] @ z["text"].T
  hits = (similar.argmax(1) == np.arange(5)).mean()
  assert table["i2t_r1"] == pytest.approx(hits)
  assert table["i2t_r5"] == 1.0 and table["t2i_chance_r1"] == pytest.approx(0.2)
  pairs = model.retrieval(
    image=PICTURES[:2], text=texts[:4], ids=dict(image=[0, 1], text=[0, 0, 1, 1])
  )
  assert pairs["i2t_chance_r1"] == pytest.approx(0.5)


def test_the_recipe_feeds_train_and_evaluation(ours):
  from tools import explain_sharding

  config = explain_sharding.load(str(ours / "config.py"))
  assert config.data.tokenizer == str(ours.resolve() / "spiece.model")
  names = [name for name, _ in config.data.transforms]
  crop = ["decode_image", "random_resized_crop", "normalize"]
  assert names == [*crop, "sample_caption", "tokenize"]
  row = pipeline.tokenize(config, ["Red, cat!"])
  assert row["text_mask"].all() and (row["text"][0, -2:] == 1).all()
  pipeline.transforms(config, "transforms")


@pytest.mark.parametrize(
  ("call", "match"),
  [
    (lambda m: m.embed(audio=[1]), r"no modality 'audio', the model has \['image', 't"),
    (lambda m: m.embed(text="a cat"), "expected a sequence of examples"),
    (lambda m: m.embed(image=[]), "expected a sequence of examples"),
    (lambda m: m.embed(image=[b"junk"]), "image .*junk.*: not an image"),
    (lambda m: m.embed(text=["\ud800"]), "caption is not UTF-8"),
    (lambda m: m.classify(image=PICTURES, classes=[]), r"classes = \[\]"),
    (lambda m: m.classify(image=PICTURES, classes=["a"], templates=("x",)), "with {}"),
    (lambda m: m.classify(classes=["a"]), "takes one modality, got"),
    (lambda m: m.retrieval(image=PICTURES), "takes two modalities, got"),
    (lambda m: m.retrieval(image=PICTURES, text=["a"]), "as many rows of one"),
  ],
)
def test_bad_inputs(model, call, match):
  with pytest.raises(ValueError, match=match):
    call(model)


def test_no_model_and_a_tokenizer_of_another_vocabulary(source, tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
    pretrained.load(tmp_path / "nowhere")
  with pytest.raises(
    FileNotFoundError, match=r"no tokenizer at .*: expected tokenizer"
  ):
    foreign.read(source, tokenizer_at=str(tmp_path))
  card = json.loads((source / "config.json").read_text())
  shutil.copytree(source, tmp_path / "other")
  state, _, _ = files.read(source)
  name = "text_model.embeddings.token_embedding.weight"
  state[name] = state[name][:20]
  card["text_config"]["vocab_size"] = 20
  files.write(tmp_path / "other", "hf", state, {"config.json": card})
  with pytest.raises(ValueError, match=r"spiece\.model has 28 ids.*text\.vocab = 20"):
    foreign.read(tmp_path / "other")
  (tmp_path / "other" / "spiece.model").unlink()
  silent = pretrained.load(tmp_path / "other", devices=jax.devices()[:1])
  with pytest.raises(ValueError, match="came without a tokenizer"):
    silent.embed(text=["a"])
