"""The command, by its files: from another library to Concord and back; bad input."""

import json
import shutil

import jax
from ml_collections import ConfigDict
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from configs import clip_b16
from input_pipeline import tokenizer
from model.interop import convert
from tests.model.interop import models
from tests.model.interop.models import clip, filled, same
from tools import convert as tool
from tools import explain_sharding
from training import checkpoint, errors, foreign, pretrained


@pytest.fixture(scope="module")
def model():
  config = clip()
  params = filled(config)
  return config, params, convert.save(config, params, "hf")


@pytest.fixture(scope="module")
def source(model, tmp_path_factory):
  """A folder as transformers writes it, in two parts, with a tokenizer."""
  folder = tmp_path_factory.mktemp("clip")
  _, _, (state, card) = model
  names = sorted(state)
  index = {}
  for part, mine in (("a.safetensors", names[::2]), ("b.safetensors", names[1::2])):
    safetensors.numpy.save_file({k: state[k] for k in mine}, folder / part)
    index |= dict.fromkeys(mine, part)
  text = json.dumps({"weight_map": index})
  (folder / "model.safetensors.index.json").write_text(text)
  (folder / "config.json").write_text(json.dumps(card))
  (folder / "vocab.json").write_text("{}")
  pixels = json.dumps(dict(image_mean=[0.1, 0.2, 0.3], image_std=[1, 2, 3]))
  (folder / "preprocessor_config.json").write_text(pixels)
  return folder


def words(source, to, library, *flags):
  return ["--from", str(source), "--to", str(to), "--format", library, *flags]


def call(*given):
  tool.main(words(*given))


def run(*given):
  """Returns what would be printed; errors come as they are."""
  return tool.run(tool.parse(words(*given)))


def test_to_concord_and_back(model, source, tmp_path, capsys):
  config, params, (state, card) = model
  ours, theirs, other = tmp_path / "ours", tmp_path / "theirs", tmp_path / "other"
  call(source, ours, "concord")
  said = capsys.readouterr().out
  assert "read: hf's CLIPModel" in said and "unused: none" in said
  assert f"loaded: {len(state)} arrays of {len(state)}" in said
  assert "copied: vocab.json\n" in said and "tokenizer: none found" in said
  assert f"--config {ours / 'config.py'} --config.init_from={ours}" in said

  # The recipe makes the model, and config.init_from takes every array of it.
  recipe = explain_sharding.load(str(ours / "config.py"))
  assert recipe.model == config.model and recipe.name == "clip"
  written = json.loads((ours / "config.json").read_text())
  assert json.loads(recipe.to_json()) == written
  assert recipe.data.eval_transforms[1:] == (
    ("resize", dict(crop=1.0, as_in="transformers")),
    ("normalize", dict(mean=(0.1, 0.2, 0.3), std=(1, 2, 3))),
  )
  wanted = explain_sharding.abstract_params(recipe)
  wanted["objective"] = {"infonce": {"log_scale": jax.ShapeDtypeStruct((), "float32")}}
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  places = jax.tree.map(lambda _: here, wanted)
  got, odd = checkpoint.init_from(str(ours), wanted, places)
  assert odd == []
  same(got, params)

  call(ours, theirs, "hf")
  assert "read: a checkpoint of Concord's" in capsys.readouterr().out
  same(safetensors.numpy.load_file(theirs / "model.safetensors"), state)
  assert json.loads((theirs / "config.json").read_text()) == card
  assert (theirs / "vocab.json").exists()
  pixels = json.loads((theirs / "preprocessor_config.json").read_text())
  assert pixels["image_mean"] == [0.1, 0.2, 0.3] and pixels["image_std"] == [1, 2, 3]
  assert pixels["size"] == {"shortest_edge": 8} and pixels["do_center_crop"]
  call(ours, other, "open_clip")
  given = json.loads((other / "open_clip_config.json").read_text())
  assert given["preprocess_cfg"]["mean"] == [0.1, 0.2, 0.3]
  assert given["preprocess_cfg"]["resize_mode"] == "shortest"
  arrays = safetensors.numpy.load_file(other / "open_clip_model.safetensors")
  again, back, _ = convert.load(arrays, given)
  assert again == config
  same(back, params)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A workdir of the small form of clip_b16, which has moved since."""
  folder = tmp_path_factory.mktemp("run")
  lines = [f"{a} {b}" for a in ("red", "old") for b in ("cat", "dog", "bird")]
  tokenizer.train_tokenizer(lines, str(folder / "tokenizer.model"), 273)
  config = clip_b16.get_config("runlocal")
  config.model.trunk.depth = 1
  config.model.modalities.text.vocab = 273
  config.data.tokenizer = "/elsewhere/tokenizer.model"
  checkpoint.write_params(str(folder), filled(config))
  checkpoint.save_config(str(folder), config)
  return folder


def test_a_model_trained_here_goes_to_transformers(trained, tmp_path):
  """Its texts end with the tokenizer's own id, and are pooled there."""
  said = run(trained, tmp_path / "out", "hf")
  assert "texts end with id 3, by tokenizer.model\n" in said
  card = json.loads((tmp_path / "out" / "config.json").read_text())
  assert card["text_config"]["eos_token_id"] == tokenizer.END == 3
  texts = ["red cat", "", "Old bird", "a text that is cut " * 9]
  one = jax.devices()[:1]
  paths = (trained, tmp_path / "out")
  want, got = (pretrained.load(p, devices=one).embed(text=texts) for p in paths)
  np.testing.assert_allclose(got["text"], want["text"], atol=1e-5)
  with pytest.raises(ValueError, match=r"eos = 3, expected the greatest id, 272"):
    run(trained, tmp_path / "other", "open_clip")


def without_an_end(config):
  config.data.eval_transforms = (("tokenize", dict(eos=False)),)


def of_another_end(config):
  config.data.eval_transforms = (("tokenize", dict(end=(7,))),)


def said_already(config):
  config.model.modalities.text.eos = 5


def without_a_tokenizer(config):
  config.data.tokenizer = "/elsewhere/other.model"


def without_padding(config):
  config.model.modalities.text.pad = -1


def seeing_both_ways(config):
  config.model.modalities.text.trunk.causal = False


def padded_with_the_end(config):
  config.model.modalities.text.pad = 3


@pytest.mark.parametrize(
  ("change", "eos"),
  [
    (padded_with_the_end, -1),
    (without_an_end, -1),
    (of_another_end, 7),
    (said_already, 5),
    (without_a_tokenizer, -1),
    (without_padding, -1),
    (seeing_both_ways, -1),
  ],
)
def test_the_end_of_texts_is_set_only_where_it_is_known(trained, change, eos):
  config = ConfigDict(json.loads((trained / "config.json").read_text()))
  change(config)
  said = tool.ended(config, trained)
  assert config.model.modalities.text.eos == eos
  assert bool(said) == (eos == 7)


def test_open_clip_is_told_of_another_tokenizer(trained, tmp_path):
  """It takes the files of transformers' that lie here, or a line says what it takes."""
  config = ConfigDict(json.loads((trained / "config.json").read_text()))
  shutil.copy(trained / "tokenizer.model", tmp_path)
  card = {}
  (line,) = tool.spoken(config, card, tmp_path, None)
  assert "will take CLIP's own tokenizer" in line and card == {}
  (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer"}')
  (line,) = tool.spoken(config, card, tmp_path, None)
  assert "beside the weights, clean = 'whitespace', which mends" in line
  assert card["hf_tokenizer_name"] and card["tokenizer_kwargs"] == {
    "clean": "whitespace"
  }
  data = (trained / "tokenizer.model").read_bytes()
  words = foreign.Words("tokenizer.model", data, {})
  config.data.eval_transforms = (("tokenize", dict(clean="mended_lowercase")),)
  (line,) = tool.spoken(config, card, tmp_path, words)
  assert line.endswith("clean = 'lower'")


def test_clips_own_tokenizer_is_what_open_clip_takes_anyway(tmp_path, monkeypatch):
  monkeypatch.setattr(tokenizer, "id_of", lambda data, piece: 49_407)
  card = {}
  words = foreign.Words("tokenizer.json", b"{}", {})
  assert tool.spoken(clip(), card, tmp_path, words) == [] and card == {}


@pytest.mark.parametrize("pool", ["first", "mean"])
def test_the_pooling_of_a_sentence_encoder_comes_back(tmp_path, pool):
  config = models.one_tower("bert")
  config.model.modalities.text.pool = pool
  run_at, out = tmp_path / "run", tmp_path / "out"
  checkpoint.write_params(str(run_at), filled(config))
  checkpoint.save_config(str(run_at), config)
  run(run_at, out, "hf")
  assert foreign.read(out).config.model.modalities.text.pool == pool
  assert (out / "modules.json").exists() == (pool == "first")
  config.model.modalities.text.pool = "last"
  with pytest.raises(ValueError, match=r"pool = 'last', expected one of mean, first"):
    convert.save(config, filled(config), "hf")


def test_flags_below_nothing_leave_nothing_behind(source, tmp_path):
  for flag in ("--size", "--patch", "--length", "--vocab"):
    with pytest.raises(ValueError, match=rf"{flag[2:]} = -8, expected at least 1"):
      run(source, tmp_path / "out", "concord", flag, "-8")
  assert not (tmp_path / "out").exists()


def test_a_recipe_of_one_tower_has_no_other(tmp_path):
  config = models.one_tower("bert")
  (tmp_path / "config.py").write_text(tool.recipe(config, "x"))
  assert explain_sharding.load(str(tmp_path / "config.py")).model == config.model


def test_a_file_without_config_in_half_precision(model, tmp_path, capsys):
  state = model[2][0]
  half = {k: v.astype(ml_dtypes.bfloat16) for k, v in state.items()}
  half["extra"] = half.pop("logit_scale")
  safetensors.numpy.save_file(half, tmp_path / "x.safetensors")
  with pytest.raises(ValueError, match=r"have no place for, .*: extra; --partial"):
    run(tmp_path / "x.safetensors", tmp_path / "out", "concord")
  call(tmp_path / "x.safetensors", tmp_path / "out", "concord", "--partial")
  said = capsys.readouterr().out
  assert "no config.json: heads of width 64" in said
  assert "missing, as the model will initialise them: logit_scale" in said
  assert "unused: extra" in said
  got = checkpoint.read_params(str(tmp_path / "out"), "--from")
  name = "text_model.embeddings.position_embedding.weight"
  position = got["towers"]["stem_text"]["position"]
  assert position.dtype == np.float32
  np.testing.assert_array_equal(position, half[name].astype(np.float32))


def test_sizes_and_ids_are_resized_on_the_way(source, tmp_path, capsys):
  call(source, tmp_path / "out", "concord", "--size", "12", "--vocab", "10")
  said = capsys.readouterr().out
  assert (
    "resized: images of (8, 8, 3) -> (12, 12, 3); positions of (2, 2) -> (3, 3); ids"
    in said
  )
  recipe = explain_sharding.load(str(tmp_path / "out" / "config.py"))
  assert recipe.data.eval_transforms[1] == (
    "resize",
    dict(crop=1.0, as_in="transformers"),
  )
  wanted = checkpoint.flatten(explain_sharding.abstract_params(recipe))
  got = checkpoint.read_params(str(tmp_path / "out"), "--from")
  del got["objective"]
  assert checkpoint.differences(checkpoint.flatten(got), wanted) == []


def broken(folder, kind, state, card):
  """Writes a folder that cannot be converted."""
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(card))
  weights = folder / "model.safetensors"
  if kind == "pickle":
    (folder / "pytorch_model.bin").write_bytes(b"")
  elif kind == "cut":
    weights.write_bytes(b"\0" * 20)
  elif kind == "architecture":
    safetensors.numpy.save_file({"bert.pooler.weight": np.zeros(2)}, weights)
  elif kind == "missing":
    less = {k: v for k, v in state.items() if k != "visual_projection.weight"}
    safetensors.numpy.save_file(less | {"logit_scale": np.zeros(())}, weights)
  elif kind == "bias":
    less = {k: v for k, v in state.items() if not k.endswith("0.mlp.fc1.bias")}
    safetensors.numpy.save_file(less, weights)
  elif kind == "shape":
    odd = {"text_projection.weight": np.zeros((6, 5), np.float32)}
    safetensors.numpy.save_file(state | odd, weights)


@pytest.mark.parametrize(
  ("kind", "error", "match"),
  [
    ("empty", FileNotFoundError, r"holds neither model\.safetensors nor open_clip_mo"),
    ("pickle", ValueError, r"pytorch_model\.bin is a pickle.*safetensors\.torch\.save"),
    ("cut", ValueError, r"model\.safetensors is not a whole safetensors file"),
    ("architecture", ValueError, r"none of the architectures hf's CLIPModel"),
    ("missing", ValueError, r"lacks visual_projection\.weight, from whose shape"),
    ("bias", ValueError, r"lacks 2 arrays of a CLIPModel: .*layers\.0\.mlp\.fc1\.bias"),
    ("shape", ValueError, r"text_projection\.weight: \(6, 5\), expected \(6, 4\)"),
  ],
)
def test_bad_checkpoints(model, tmp_path, kind, error, match):
  state, card = model[2]
  broken(tmp_path / "bad", kind, state, card)
  with pytest.raises(error, match=match):
    run(tmp_path / "bad", tmp_path / "out", "concord")
  assert not (tmp_path / "out").exists()


def test_bad_flags_end_without_a_traceback(tmp_path, capsys):
  nowhere = tmp_path / "nowhere"
  with pytest.raises(SystemExit) as e:
    call(nowhere, tmp_path / "out", "concord")
  assert e.value.code == 2
  said = capsys.readouterr()
  assert said.err == f"error: --from {nowhere}: no such file or folder\n"
  assert not said.out
  with pytest.raises(errors.SettingsError, match="no such file"):
    call(nowhere, tmp_path / "out", "concord", "--debug")


def test_bad_flags(source, tmp_path):
  with pytest.raises(FileNotFoundError, match="nowhere: no such file"):
    run(tmp_path / "nowhere", tmp_path / "out", "concord")
  with pytest.raises(FileExistsError, match="is not empty: name another"):
    run(source, source, "concord")
  pickle = tmp_path / "x.pt"
  pickle.write_bytes(b"")
  with pytest.raises(ValueError, match=r"x\.pt is a pickle"):
    run(pickle, tmp_path / "out", "concord")
  (tmp_path / "run" / "state").mkdir(parents=True)
  with pytest.raises(ValueError, match="is a checkpoint of Concord's already"):
    run(tmp_path / "run", tmp_path / "out", "concord")
  with pytest.raises(FileNotFoundError, match=r"no config\.json at .*what model"):
    run(tmp_path / "run", tmp_path / "out", "hf")
