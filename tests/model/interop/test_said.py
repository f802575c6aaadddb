"""What a config says is followed, held against the arrays, or refused if it is odd."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from model.interop import convert, describe, files
from model.interop.said import Said
from tests.model.interop import models
from tests.model.interop.models import clip, filled, siglip


@pytest.fixture(scope="module")
def saved():
  """Returns (state, card) by library; fresh cards at each call."""
  config = clip(activation="quick_gelu")
  params = filled(config)
  made = {library: convert.save(config, params, library) for library in files.WEIGHTS
          if library != "big_vision"}  # fmt: skip
  return lambda library: (made[library][0], json.loads(json.dumps(made[library][1])))


@pytest.mark.parametrize(
  "other",
  [
    dict(architecture="vit_huge_patch14_clip_224", num_classes=8),  # timm's
    dict(model_type="clip", vision_config=dict(hidden_act="gelu")),
  ],
)
def test_the_config_is_that_of_the_weights(saved, tmp_path, other):
  state, card = saved("open_clip")
  files.write(tmp_path, "open_clip", state, {"config.json": other})
  weights = tmp_path / files.WEIGHTS["open_clip"]
  assert files.read(weights)[1] == {}
  (tmp_path / "open_clip_config.json").write_text(json.dumps(card))
  for source in (weights, tmp_path):
    assert files.read(source)[1] == card
  ours, _ = saved("hf")
  safetensors.numpy.save_file(ours, tmp_path / "x.safetensors")
  given = files.read(tmp_path / "x.safetensors")[1]
  assert given == (other if "model_type" in other else {})


def test_another_name_of_the_config_is_read_if_it_holds_the_keys(saved, tmp_path):
  state, card = saved("open_clip")
  files.write(tmp_path, "open_clip", state, {"config.json": card})
  assert files.read(tmp_path)[1] == card


@pytest.mark.parametrize(
  "part", ["text_config", "vision_config", "text_config_dict", "vision_config_dict"]
)
def test_old_configs_of_a_tower_stand_for_the_whole_tower(saved, part):
  state, card = saved("hf")
  said = dict(card[part.removesuffix("_dict")], hidden_act="gelu")
  usual = convert.load(state, card)[0]
  assert usual.model.trunk.activation == "quick_gelu"
  got = convert.load(state, card | {part: said})[0]
  image, text = describe.towers(got.model, convert.recognise(state, card))
  changed = text if part.startswith("text") else image
  for tower in (image, text):
    want = "gelu" if tower is changed else "quick_gelu"
    assert tower.trunk.activation == want
  assert convert.load(state, card | {part.removesuffix("_dict") + "_dict": None})
  with pytest.raises(ValueError, match="heads do not divide the width"):
    convert.load(state, card | {part: {"hidden_act": "gelu"}})  # 12 or 8 of them


def test_what_open_clip_takes_unsaid_is_taken(saved):
  state, card = saved("open_clip")
  config = clip(activation="gelu")
  config.model.modalities.text.trunk.update(dict(width=16, heads=8))
  state, card = convert.save(config, filled(config), "open_clip")
  del card["model_cfg"]["text_cfg"]["heads"]
  del card["model_cfg"]["text_cfg"]["norm_kwargs"]
  text = convert.load(state, card)[0].model.modalities.text
  assert text.trunk.heads == 8


def timm_state(width=8, depth=2):
  """Returns names and shapes of a SigLIP in open_clip that `describe` reads."""
  shapes = {
    "visual.trunk.attn_pool.latent": (1, 1, width),
    "visual.trunk.pos_embed": (1, 4, width),
    "visual.trunk.patch_embed.proj.weight": (width, 3, 4, 4),
    "text.token_embedding.weight": (9, width),
    "text.positional_embedding": (5, width),
  }
  for i in range(depth):
    shapes[f"visual.trunk.blocks.{i}.mlp.fc1.weight"] = (12, width)
    shapes[f"text.transformer.resblocks.{i}.mlp.c_fc.weight"] = (12, width)
  return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


TEXT = dict(no_causal_mask=True, pool_type="last")


def test_siglip_in_open_clip_reads_what_is_unsaid_as_there():
  state = timm_state()
  kind = convert.recognise(state, {})
  c = kind.describe(state, dict(vision_cfg=dict(timm_pool="map"), text_cfg=TEXT))
  assert c.model.modalities.text.trunk.heads == 8
  assert c.model.modalities.text.trunk.epsilon == 1e-5
  assert c.model.trunk.epsilon == 1e-6
  config = kind.describe(state, {})  # nothing is said
  assert config.model.trunk.epsilon == 1e-6
  assert "epsilon" not in config.model.modalities.text.trunk
  for given, match in (
    (dict(text_cfg=TEXT, vision_cfg=dict(image_size=8)), r"timm_pool = 'avg', which"),
    (dict(text_cfg=dict(pool_type="last")), r"no_causal_mask = False, which open_clip"),
    (dict(text_cfg=dict(no_causal_mask=True)), r"pool_type = 'argmax', which open_cl"),
    (
      dict(vision_cfg=dict(timm_pool="map", timm_model_name="vit_base_patch16_x")),
      r"timm_model_name = 'vit_base_patch16_x', of width 768, depth 12 .* make 8, 2",
    ),
  ):
    with pytest.raises(ValueError, match=match):
      kind.describe(state, given)


@pytest.mark.parametrize("kind", ["dinov2", "bert"])
def test_single_towers_without_heads_have_transformers_twelve(kind):
  config = models.one_tower(kind)
  config.model.trunk.update(dict(width=24, heads=12, mlp=48))
  config.model.embed_dim = 24
  state, card = convert.save(config, filled(config), "hf")
  del card["num_attention_heads"]
  assert convert.load(state, card)[0].model.trunk.heads == 12
  # Without a config.json heads are of 64; a pool is no config.
  for given in ({}, {"pool": "mean"} if kind == "bert" else {}):
    assert convert.load(state, given)[0].model.trunk.heads == 1


CONTRADICTIONS = [
  ("hf", "text_config", dict(num_hidden_layers=3), "make 2"),
  ("hf", "vision_config", dict(num_hidden_layers=1), "make 2"),
  ("hf", "text_config", dict(hidden_size=8), "make 4"),
  ("hf", "vision_config", dict(patch_size=2), r"make \(4, 4\)"),
  ("hf", "vision_config", dict(image_size=16), r"make \(8, 8\)"),
  ("hf", "vision_config", dict(num_patches=9), "make 4"),
  ("open_clip", "text_cfg", dict(layers=3), "make 2"),
  ("open_clip", "vision_cfg", dict(width=16), "make 8"),
  ("open_clip", "vision_cfg", dict(image_size=[4, 16]), r"make \(8, 8\)"),
  ("open_clip", "vision_cfg", dict(image_size="8"), r"make \(8, 8\)"),
  ("open_clip", "vision_cfg", dict(patch_size=8), r"make \(4, 4\)"),
]


@pytest.mark.parametrize(("library", "part", "change", "made"), CONTRADICTIONS)
def test_a_config_of_another_model_is_refused(saved, library, part, change, made):
  state, card = saved(library)
  card.get("model_cfg", card)[part] |= change
  (key,) = change
  with pytest.raises(ValueError, match=rf"config\.json has .*{part}\.{key} = .*{made}"):
    convert.load(state, card)


def test_a_checkpoint_without_its_last_block_is_refused(saved):
  for library, block in (("hf", "encoder.layers.1."), ("open_clip", "resblocks.1.")):
    state, card = saved(library)
    less = {k: x for k, x in state.items() if block not in k}
    with pytest.raises(ValueError, match=r"= 2, and the arrays make 1: .* not whole"):
      convert.load(less, card)
  for kind, block in (("dinov2", "layer.1."), ("bert", "layer.1.")):
    config = models.one_tower(kind)
    state, card = convert.save(config, filled(config), "hf")
    with pytest.raises(ValueError, match="num_hidden_layers = 2, and the arrays make"):
      convert.load({k: x for k, x in state.items() if block not in k}, card)


def test_pixels_that_fill_no_patch_are_no_contradiction(saved):
  for library, part in (("hf", "vision_config"), ("open_clip", "vision_cfg")):
    state, card = saved(library)
    card.get("model_cfg", card)[part]["image_size"] = 11
    assert convert.load(state, card)[0].model.modalities.image.size == (8, 8, 3)


ODD = [
  ("hf", "vision_config", [1], "expected an object"),
  ("hf", "vision_config.num_attention_heads", "2", "expected a whole number of at l"),
  ("hf", "vision_config.num_attention_heads", 0, "expected a whole number of at least"),
  ("hf", "vision_config.num_attention_heads", None, "expected a whole number of at le"),
  ("hf", "vision_config.layer_norm_eps", "1e-5", "expected a number above 0"),
  ("hf", "text_config.layer_norm_eps", None, "expected a number above 0"),
  ("hf", "text_config.eos_token_id", None, "expected a whole number of at least 0"),
  ("hf", "text_config.eos_token_id", [8], "expected a whole number of at least 0"),
  ("hf", "text_config.hidden_act", ["gelu"], "expected one of gelu_new"),
  ("open_clip", "model_cfg", [1], "expected an object"),
  ("open_clip", "model_cfg.text_cfg", "x", "expected an object"),
  ("open_clip", "model_cfg.text_cfg.heads", "2", "expected a whole number of at least"),
  ("open_clip", "model_cfg.vision_cfg.head_width", 0, "expected a whole number of at "),
  ("open_clip", "model_cfg.text_cfg.norm_kwargs", [], "expected an object"),
]


@pytest.mark.parametrize(("library", "path", "value", "wanted"), ODD)
def test_values_of_another_kind_are_refused_in_a_line(
  saved, library, path, value, wanted
):
  state, card = saved(library)
  *heads, last = path.split(".")
  node = card
  for head in heads:
    node = node[head]
  node[last] = value
  with pytest.raises(ValueError, match=rf"config\.json has {path} = .*{wanted}") as e:
    convert.load(state, card)
  assert "\n" not in str(e.value)


def test_numbers_and_null():
  said = Said(dict(a=None, b=True, c=float("inf"), d=-1.0, e=3))
  assert said.part("a").keys == {} and said.number("e", 1.0) == 3.0
  assert said.whole("f", 7) == 7
  for call in (said.whole, said.number):
    with pytest.raises(ValueError, match="has b = True, expected"):
      call("b", 1)
  for key in "cd":
    with pytest.raises(ValueError, match="expected a number above 0"):
      said.number(key, 1.0)
  config = siglip()
  state, card = convert.save(config, filled(config), "hf")
  with pytest.raises(ValueError, match="12 heads do not divide the width 8"):
    convert.load(state, card | dict(text_config=None))


def test_numbers_that_are_no_floats_are_refused(saved, tmp_path):
  state, card = saved("hf")
  coded = {k: x.astype(np.int8) if x.ndim == 2 else x for k, x in state.items()}
  with pytest.raises(ValueError, match=r"is quantised: \d+ of its arrays .* of int8"):
    convert.load(coded, card)
  with pytest.raises(ValueError, match="is quantised"):
    convert.load(coded, card, partial=True)
  half = {k: x.astype(ml_dtypes.bfloat16) for k, x in state.items()}
  assert convert.load(half, card)
  eighth = {"x": np.zeros(2, ml_dtypes.float8_e4m3fn)}
  safetensors.numpy.save_file(eighth, tmp_path / "x.safetensors")
  with pytest.raises(
    ValueError, match=r"x\.safetensors holds numbers that NumPy has n"
  ):
    files.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("said", [{}, [], dict(a=1), dict(a="../a"), dict(a="b/c")])
def test_an_index_without_files_is_refused(tmp_path, said):
  index = tmp_path / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": said} if said else {}))
  with pytest.raises(ValueError, match=r"index\.json has no weight_map of arrays"):
    files.read(tmp_path)
