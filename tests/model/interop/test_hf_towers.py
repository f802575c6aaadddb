"""DINOv2 and BERT of transformers give what our towers give, layer by layer."""

import json

import jax
import numpy as np
import pytest

from model.interop import convert, files
from tests.model.interop import models, peers
from tools import convert as tool
from tools import explain_sharding
from training import checkpoint

SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=4)


def dino(transformers, registers=0, **more):
  said = SMALL | dict(image_size=12, patch_size=4, mlp_ratio=2, layer_norm_eps=1e-6)
  if registers:
    config = transformers.Dinov2WithRegistersConfig(
      **said, num_register_tokens=registers
    )
    return transformers.Dinov2WithRegistersModel(config)
  return transformers.Dinov2Model(transformers.Dinov2Config(**said, **more))


def bert(transformers):
  config = transformers.BertConfig(
    **SMALL,
    intermediate_size=20,
    vocab_size=peers.TEXT["vocab"],
    max_position_embeddings=peers.TEXT["length"],
  )
  return transformers.BertModel(config, add_pooling_layer=False)


MODELS = {
  "dinov2": dino,
  "registers": lambda transformers: dino(transformers, registers=2),
  "bert": bert,
}


def saved(model, folder):
  """Returns what `save_pretrained` writes: their names in files, not in memory."""
  with peers.quiet():
    model.save_pretrained(folder)
  state, given, _ = files.read(folder)
  return state, given


def theirs(torch, model, batch):
  """Returns label -> output, as `peers.ours` labels them."""
  layers = model.layers if hasattr(model, "layers") else model.encoder.layer
  (m,) = batch
  modules = {f"{m}/block_{i:02d}": layer for i, layer in enumerate(layers)}
  x = torch.from_numpy(batch[m])
  if m == "image":
    call = lambda: model(pixel_values=x)  # noqa: E731
  else:
    real = torch.from_numpy((batch[m] != 0).astype(np.int64))
    call = lambda: model(input_ids=x, attention_mask=real)  # noqa: E731
  out, seen = peers.recorded(torch, modules, call)
  tokens = out.last_hidden_state.numpy()
  seen[f"{m}/tokens"] = tokens
  if m == "image":
    seen["image/embedding"] = out.pooler_output.numpy()
  else:
    weight = (batch[m] != 0)[..., None]
    seen["text/embedding"] = (tokens * weight).sum(1) / weight.sum(1)
  return seen


@pytest.fixture(scope="module", params=MODELS)
def peer(request, tmp_path_factory):
  torch, transformers = peers.library("transformers")
  with peers.quiet():
    model = peers.randomised(torch, MODELS[request.param](transformers))
  folder = tmp_path_factory.mktemp(request.param)
  return torch, model, folder, *saved(model, folder)


def test_every_layer_is_the_same_in_both_directions(peer, tmp_path):
  torch, model, _, state, given = peer
  config, params, found = convert.load(state, given)
  assert found.missing == () and set(found.unused) <= {"embeddings.mask_token"}
  (m,) = config.model.modalities
  ours, (image, text) = peers.batch_of(-1)
  text[:, -2:] = 0  # padding, which nothing may see
  batch = {"image": image} if m == "image" else {"text": text}
  with peers.quiet():
    want = theirs(torch, model, batch)
  own = {"image": ours["image"]} if m == "image" else {"text": text.astype(np.int32)}
  got, mask = peers.ours(config, params, own)
  assert m == "image" or (mask == (text != 0)).all()
  peers.compare(got, want, mask)

  back, card = convert.save(config, params, "hf")
  assert set(back) == set(state) - set(found.unused)
  folded = ("position_embeddings", "token_type", "cls_token")
  for name in (n for n in back if not any(part in n for part in folded)):
    np.testing.assert_array_equal(back[name], state[name])
  files.write(tmp_path, "hf", back, {"config.json": card})
  with peers.quiet():
    other = type(model).from_pretrained(tmp_path).eval()
    again = theirs(torch, other, batch)
  peers.compare(again, want, mask)
  again_config, again_params, _ = convert.load(back, card)
  assert again_config == config
  models.same(again_params, params)


def test_the_command_makes_a_recipe_of_one_tower(peer, tmp_path):
  folder = peer[2]
  tool.main(["--from", str(folder), "--to", str(tmp_path / "x"), "--format", "concord"])
  params = checkpoint.read_params(str(tmp_path / "x"), "--from")
  leaves = jax.tree.leaves(params)
  assert {*params} == {"towers"} and sum(x.size for x in leaves) > 1000
  written = json.loads((tmp_path / "x" / "config.json").read_text())
  assert len(written["model"]["modalities"]) == 1
  recipe = explain_sharding.load(str(tmp_path / "x" / "config.py"))
  assert json.loads(recipe.to_json()) == written


def test_what_our_towers_have_not_is_refused():
  _, transformers = peers.library("transformers")
  with peers.quiet():
    model = dino(transformers, use_swiglu_ffn=True)
  state = peers.state_of(model)
  with pytest.raises(ValueError, match="of the SwiGLU kind"):
    convert.load({k.replace("layers.", "encoder.layer."): v for k, v in state.items()})
  with peers.quiet():
    state = peers.state_of(bert(transformers))
  for said, match in (
    (dict(model_type="roberta"), "model_type = 'roberta', whose arrays"),
    (dict(is_decoder=True), "is_decoder = True, expected"),
    (dict(hidden_act="silu"), "hidden_act = 'silu', expected one of"),
  ):
    with pytest.raises(ValueError, match=match):
      convert.load(state, dict(num_attention_heads=4) | said)
