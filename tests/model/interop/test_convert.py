"""Written in another library's names it comes back as it was; what cannot, raises."""

import copy

from flax import traverse_util
import numpy as np
import pytest

from configs import base
from model.encoders import stacking
from model.interop import convert, describe, open_clip
from tests.model.interop import models
from tests.model.interop.models import clip, filled, same, siglip

CASES = {
  "hf-clip": ("hf", clip),
  "hf-siglip": ("hf", siglip),
  "open_clip-clip": ("open_clip", clip),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
  library, make = CASES[request.param]
  config = make()
  return library, config, filled(config)


def test_there_and_back_is_exact(case):
  library, config, params = case
  state, card = convert.save(config, params, library)
  assert all(x.dtype == np.float32 and x.flags.c_contiguous for x in state.values())
  again, back, found = convert.load(state, card)
  assert again == config
  same(back, params)
  assert found.missing == () and found.unused == ()
  assert sorted(found.loaded) == sorted(state)


@pytest.mark.parametrize("kind", ["dinov2", "bert"])
def test_single_towers_there_and_back(kind):
  config = models.one_tower(kind)
  params = filled(config)
  state, card = convert.save(config, params, "hf")
  assert card["model_type"].startswith(kind)
  again, back, found = convert.load(state, card)
  assert again == config
  same(back, params)
  assert found.missing == () and found.unused == ()
  config.model.trunk.layer_scale = 0.0 if kind == "dinov2" else 0.5
  with pytest.raises(ValueError, match=r"layer_scale = 0\."):
    convert.save(config, params, "hf")


def test_a_scanned_model_is_written_like_an_unrolled_one(case):
  library, config, params = case
  scanned = stacking.stack_layers(params)
  assert "blocks" in scanned["towers"]["trunk_image"]
  same(*(convert.save(config, p, library)[0] for p in (params, scanned)))


def test_what_is_missing_and_unused_is_said(case):
  library, config, params = case
  state, card = convert.save(config, params, library)
  scale = state.pop("logit_scale")
  state |= {"text_model.embeddings.position_ids": scale}
  _, back, found = convert.load(state, card)
  assert found.missing == ("logit_scale",) and found.unused == ()
  lost = next(
    name for name in state if name.endswith((".1.mlp.fc2.bias", ".1.ln_2.bias"))
  )
  del state[lost]
  with pytest.raises(ValueError, match=rf"lacks 1 arrays of .*{lost}"):
    convert.load(state, card)
  _, back, found = convert.load(state, card, partial=True)
  assert found.missing == (lost, "logit_scale")
  wanted = traverse_util.flatten_dict(params, sep="/")
  got = traverse_util.flatten_dict(back, sep="/")
  assert len(wanted) - len(got) == 2 and {*got} < {*wanted}


def test_arrays_without_a_place_are_refused_but_where_they_change_nothing(case):
  library, config, params = case
  state, card = convert.save(config, params, library)
  extra = state | {"visual.0.ls_1.gamma": np.ones(8, np.float32)}
  with pytest.raises(
    ValueError, match=r"holds 1 arrays .*: visual\.0\.ls_1\.gamma; --p"
  ):
    convert.load(extra, card)
  _, back, found = convert.load(extra, card, partial=True)
  assert found.unused == ("visual.0.ls_1.gamma",)
  same(back, params)


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("dinov2", "embeddings.mask_token"),
    ("dinov2", "classifier.weight"),
    ("bert", "pooler.dense.weight"),
    ("bert", "cls.predictions.bias"),
    ("bert", "encoder.layer.0.scale"),
  ],
)
def test_heads_of_other_tasks_are_left_out(kind, name):
  config = models.one_tower(kind)
  state, card = convert.save(config, filled(config), "hf")
  state[name] = np.zeros((1, 8), np.float32)
  if name.startswith("encoder"):
    with pytest.raises(ValueError, match=r"holds 1 arrays .*encoder\.layer\.0\.scale"):
      convert.load(state, card)
  else:
    assert convert.load(state, card)[2].unused == (name,)


def test_a_clip_of_the_sigmoid_loss_keeps_its_bias():
  config = clip()
  config.objective.options.losses = describe.SIGLIP_LOSS
  params = filled(config)
  state, card = convert.save(config, params, "open_clip")
  assert state["logit_bias"].shape == () and "init_logit_bias" in card["model_cfg"]
  again, back, found = convert.load(state, card)
  assert again == config and found.unused == ()
  same(back, params)


def test_contradicting_shapes_and_towers_that_are_not_whole(case):
  library, config, params = case
  state, card = convert.save(config, params, library)
  name = next(
    name
    for name in state
    if name.endswith("positional_embedding")
    or (name.endswith("position_embedding.weight") and "text" in name)
  )
  bad = state | {name: state[name][:, :-1]}
  with pytest.raises(
    ValueError, match=rf"another shape.*\s+{name}: \(., .\), expected"
  ):
    convert.load(bad, card)
  name = next(name for name in state if "token_embedding" in name)
  bad = {k: v for k, v in state.items() if k != name}
  with pytest.raises(ValueError, match=rf"lacks {name}, from whose shape"):
    convert.load(bad, card)


def test_another_architecture_is_refused():
  state = {"bert.encoder.layer.0.output.dense.weight": np.zeros((2, 2), np.float32)}
  with pytest.raises(ValueError, match=r"none of .*CLIPModel.*bert\.enc.*BertModel"):
    convert.load(state, {"architectures": ["BertModel"]})


def test_without_config_json_heads_are_64_wide_and_the_default_activation_is_taken():
  c = clip(width=128, mlp=4, depth=1, heads=2, activation="quick_gelu")
  c.model.modalities.text.trunk = dict(causal=True)
  state, _ = convert.save(c, filled(c), "hf")
  assert convert.load(state)[0] == c


@pytest.mark.parametrize(
  ("library", "activation"),
  [("hf", "gelu"), ("hf", "gelu_tanh"), ("open_clip", "gelu_tanh")],
)
def test_activations_and_epsilon_travel(library, activation):
  c = clip(activation=activation, epsilon=1e-3)
  assert convert.load(*convert.save(c, filled(c), library))[0] == c


def test_the_bias_of_patches_goes_into_their_positions():
  config = clip()
  config.model.modalities.image.stem_bias = True
  params = filled(config)
  _, back, _ = convert.load(*convert.save(config, params, "hf"))
  assert config.model.modalities.image.stem_bias
  stem = params["towers"]["stem_image"]
  want = stem["position"] + stem["embed"]["bias"]
  np.testing.assert_array_equal(back["towers"]["stem_image"]["position"], want)


def test_widths_survive_the_ratio_that_open_clip_keeps():
  for width in (49, 98, 1152):
    for mlp in (1, 97, 4304):
      assert int(width * open_clip.mlp_ratio(width, mlp)) == mlp


def changed(path, value):
  config = clip()
  *heads, last = path.split(".")
  node = config.model
  for head in heads:
    node = node[head]
  node[last] = value
  return config


@pytest.mark.parametrize(
  ("path", "value", "library", "match"),
  [
    ("modalities.text.pool", "mean", "hf", r"text\.pool = 'mean', expected 'last'"),
    ("modalities.text.eos", -1, "hf", r"text\.eos = -1, expected the id that ends"),
    ("modalities.text.pad", 8, "hf", r"eos = 8, expected .*, other than \.pad = 8: CL"),
    ("modalities.text.eos", 2, "hf", r"eos = 2: transformers takes it for a sign"),
    ("modalities.text.eos", 3, "open_clip", r"eos = 3, expected the greatest id, 8"),
    ("modalities.image.size", (8, 4, 3), "hf", r"size = \(8, 4, 3\) .*squares"),
    ("trunk.norm", "rmsnorm", "hf", r"image\.trunk\.norm = 'rmsnorm'"),
    ("trunk.activation", "quick_gelu", "open_clip", "quick_gelu in both"),
    ("moe.every", 2, "hf", "makes it sparse"),
    (
      "embed_dim",
      6,
      "big_visoin",
      r"format 'big_visoin', expected one of hf, open_clip, big",
    ),
  ],
)
def test_what_a_library_cannot_hold_is_refused_by_key(path, value, library, match):
  config = changed(path, value)
  if path == "trunk.activation":
    config.model.modalities.text.trunk.activation = "gelu"
  params = {"towers": {}, "objective": {}} if library != "open_clip" else filled(config)
  if path == "modalities.text.eos" and value == 2:
    params = filled(config)
  with pytest.raises(ValueError, match=match):
    convert.save(config, params, library)


def test_a_model_of_other_modalities_is_refused():
  config = clip()
  config.model.modalities.audio = config.model.modalities.image
  del config.model.modalities["image"]
  with pytest.raises(
    ValueError, match=r"modalities = \['audio', 'text'\], expected image and text"
  ):
    convert.save(config, {}, "hf")


def test_parameters_without_a_place_are_named():
  config = clip()
  params = filled(config)
  other = copy.deepcopy(params)
  other["objective"] = {"siglip": {"bias": np.zeros((), np.float32)}}
  with pytest.raises(ValueError, match=r"siglip/bias: not in the format.*\s.*infonce"):
    convert.save(config, other, "hf")


def test_configs_that_are_not_read_are_refused():
  state, card = convert.save(clip(), filled(clip()), "open_clip")
  card["model_cfg"]["vision_cfg"]["pool_type"] = "avg"
  with pytest.raises(ValueError, match=r"vision_cfg\.pool_type = 'avg': only 'tok'"):
    convert.load(state, card)
  state, card = convert.save(clip(), filled(clip()), "hf")
  card["text_config"]["hidden_act"] = "silu"
  with pytest.raises(ValueError, match=r"text_config\.hidden_act = 'silu', expected"):
    convert.load(state, card)


def test_the_recipe_of_a_library_is_one_of_ours():
  assert set(clip().model) == set(base.get_config().model)


@pytest.mark.parametrize(("kind", "heads"), [("clip", 8), ("siglip", 12)])
def test_what_a_config_json_leaves_out_is_the_librarys_default(kind, heads):
  trunk = models.TRUNK | dict(width=24, heads=12)
  image = dict(size=(8, 8, 3), patch=(4, 4), pool="map", project=False)
  text = dict(vocab=49_410, length=5, pool="last", pad=-1)
  if kind == "clip":
    image |= dict(pool="cls", stem_bias=False, stem_norm=True, project=True)
    text |= dict(eos=49_407)
  else:
    text |= dict(project_bias=True)
  trunks = (trunk, trunk | dict(heads=heads, causal=kind == "clip"))
  config = describe.two_towers(kind, 24, trunks, image, text)
  if kind == "siglip":
    config.objective.options.losses = describe.SIGLIP_LOSS
  params = filled(config)
  state, card = convert.save(config, params, "hf")
  for part in ("vision_config", "text_config"):
    for key in ("num_attention_heads", "eos_token_id"):
      card[part].pop(key, None)
  again, back, _ = convert.load(state, card)
  assert again == config
  same(back, params)
