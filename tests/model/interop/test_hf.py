"""Hugging Face's models give what ours give, layer by layer, in both directions."""

import jax
import numpy as np
import pytest

from model.interop import convert
from tests.model.interop import peers
from tools import convert as convert_tool


def clip(transformers, act="quick_gelu"):
  text = dict(
    vocab_size=peers.TEXT["vocab"],
    max_position_embeddings=peers.TEXT["length"],
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    hidden_act=act,
    eos_token_id=peers.TEXT["vocab"] - 1,
    bos_token_id=1,
    pad_token_id=0,
  )
  vision = dict(
    image_size=peers.IMAGE["size"],
    patch_size=peers.IMAGE["patch"],
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=4,
    hidden_act="gelu",
  )
  config = transformers.CLIPConfig(
    text_config=text, vision_config=vision, projection_dim=8
  )
  return transformers.CLIPModel(config)


def siglip(transformers):
  text = dict(
    vocab_size=peers.TEXT["vocab"],
    max_position_embeddings=peers.TEXT["length"],
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=2,
    num_attention_heads=2,
    projection_size=16,
  )
  vision = dict(
    image_size=peers.IMAGE["size"],
    patch_size=peers.IMAGE["patch"],
    hidden_size=16,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=4,
  )
  config = transformers.SiglipConfig(text_config=text, vision_config=vision)
  return transformers.SiglipModel(config)


def test_siglip2_at_its_own_size_is_a_siglip():
  torch, transformers = peers.library("transformers")
  parts = siglip(transformers).config.to_dict()
  side = peers.IMAGE["size"] // peers.IMAGE["patch"]
  parts["vision_config"] |= dict(num_patches=side**2)
  config = transformers.Siglip2Config(
    text_config=parts["text_config"], vision_config=parts["vision_config"]
  )
  with peers.quiet():
    model = peers.randomised(torch, transformers.Siglip2Model(config))
  config, params, found = convert.load(peers.state_of(model), model.config.to_dict())
  assert found.missing == () and found.unused == ()
  batch, (_, text) = peers.batch_of(-1)
  # Their processor cuts the patches: rows of pixels, channels last.
  patches = batch["image"].reshape(3, side, 4, side, 4, 3).transpose(0, 1, 3, 2, 4, 5)
  inputs = dict(
    input_ids=torch.from_numpy(text),
    pixel_values=torch.from_numpy(patches.reshape(3, side**2, -1).copy()),
    pixel_attention_mask=torch.ones(3, side**2, dtype=torch.int64),
    spatial_shapes=torch.full((3, 2), side),
  )
  towers = {"image": model.vision_model, "text": model.text_model}
  modules = {
    f"{m}/block_{i:02d}": layer
    for m, tower in towers.items()
    for i, layer in enumerate(tower.encoder.layers)
  }
  with peers.quiet():
    out, want = peers.recorded(torch, modules, lambda: model(**inputs))
  got, mask = peers.ours(config, params, batch)
  for m in ("image", "text"):
    del got[f"{m}/tokens"]
    embedding = got.pop(f"{m}/embedding")
    unit = embedding / np.linalg.norm(embedding, axis=-1, keepdims=True)
    got[f"{m}/unit"] = unit
    want[f"{m}/unit"] = getattr(out, f"{m}_embeds").detach().numpy()
  want["logits"] = out.logits_per_image.numpy()
  peers.compare(got, want, mask)
  # It is written as a SiglipModel.
  _, card = convert.save(config, params, "hf")
  assert card["model_type"] == "siglip"


MODELS = {"CLIPModel": clip, "SiglipModel": siglip}


def theirs(torch, model, batch):
  """Returns label -> output, as `peers.ours` labels them."""
  image, text = batch
  towers = {"image": model.vision_model, "text": model.text_model}
  modules = {
    f"{m}/block_{i:02d}": layer
    for m, tower in towers.items()
    for i, layer in enumerate(tower.encoder.layers)
  }
  modules["text/tokens"] = model.text_model.final_layer_norm
  if hasattr(model, "visual_projection"):
    heads = {"image": model.visual_projection, "text": model.text_projection}
  else:
    heads = {"image": model.vision_model.head, "text": model.text_model.head}
  modules |= {f"{m}/embedding": head for m, head in heads.items()}
  inputs = dict(input_ids=torch.from_numpy(text), pixel_values=torch.from_numpy(image))
  out, seen = peers.recorded(torch, modules, lambda: model(**inputs))
  with torch.no_grad():  # they normalise one token only
    last = torch.from_numpy(seen["image/block_02"])
    seen["image/tokens"] = model.vision_model.post_layernorm(last).numpy()
  seen["logits"] = out.logits_per_image.numpy()
  return seen


@pytest.fixture(scope="module", params=MODELS)
def peer(request):
  torch, transformers = peers.library("transformers")
  with peers.quiet():
    model = peers.randomised(torch, MODELS[request.param](transformers))
  return torch, model


def test_every_layer_is_the_same_in_both_directions(peer):
  torch, model = peer
  state, given = peers.state_of(model), model.config.to_dict()
  config, params, found = convert.load(state, given)
  assert found.missing == () and found.unused == ()
  batch, their_batch = peers.batch_of(config.model.modalities.text.eos)
  with peers.quiet():
    want = theirs(torch, model, their_batch)
  got, mask = peers.ours(config, params, batch)
  peers.compare(got, want, mask)

  back, card = convert.save(config, params, "hf")
  assert set(back) == set(state)
  absorbed = config.model.modalities.image.pool == "cls"  # its position, into the token
  for name in state:
    part = ...
    if absorbed and name == "vision_model.embeddings.position_embedding.weight":
      part = slice(1, None)
    elif absorbed and name == "vision_model.embeddings.class_embedding":
      continue
    np.testing.assert_array_equal(back[name][part], state[name][part])
  cls = type(model)
  with peers.quiet():
    other = cls(cls.config_class.from_dict(card)).eval()
    other.load_state_dict({k: torch.from_numpy(v) for k, v in back.items()})
    again = theirs(torch, other, their_batch)
  peers.compare(again, want, mask)
  again_config, again_params, _ = convert.load(back, card)
  assert again_config == config
  jax.tree.map(np.testing.assert_array_equal, again_params, params)


def test_files_go_through_the_command_and_load_in_the_peer(peer, tmp_path):
  torch, model = peer
  theirs_at, ours_at, back_at = (str(tmp_path / name) for name in ("a", "b", "c"))
  with peers.quiet():
    model.save_pretrained(theirs_at)
  convert_tool.main(["--from", theirs_at, "--to", ours_at, "--format", "concord"])
  convert_tool.main(["--from", ours_at, "--to", back_at, "--format", "hf"])
  with peers.quiet():
    other = type(model).from_pretrained(back_at).eval()
    _, batch = peers.batch_of(peers.TEXT["vocab"] - 1)
    image, text = map(torch.from_numpy, batch)
    with torch.no_grad():
      want, got = (m(input_ids=text, pixel_values=image) for m in (model, other))
  for name in ("image_embeds", "text_embeds", "logits_per_image"):
    np.testing.assert_allclose(got[name], want[name], rtol=1e-5, atol=1e-6)
