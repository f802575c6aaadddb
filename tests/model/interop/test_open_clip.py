"""open_clip's models give what ours give, layer by layer, in both directions."""

import functools
import json
import pathlib

from flax import traverse_util
import jax
import numpy as np
import pytest

from model.interop import convert, describe, files, rules
from tests.model.interop import peers
from tools import convert as tool

VISION = dict(
  image_size=peers.IMAGE["size"],
  patch_size=peers.IMAGE["patch"],
  width=16,
  layers=3,
  head_width=4,
  mlp_ratio=1.5,
)
TEXT = dict(
  context_length=peers.TEXT["length"],
  vocab_size=peers.TEXT["vocab"],
  width=8,
  layers=2,
  heads=2,
)
TANH = dict(act_kwargs={"approximate": "tanh"}, norm_kwargs={"eps": 1e-3})
UNSAID = ("context_length", "vocab_size", "width", "layers")
CARDS = {
  "quick": dict(quick_gelu=True, vision_cfg=VISION, text_cfg=TEXT),
  "own": dict(vision_cfg=VISION, text_cfg=TEXT | TANH),
  "sigmoid": dict(init_logit_bias=-2.0, vision_cfg=VISION, text_cfg=TEXT),
  # 8 heads, exact GELU, epsilon 1e-5.
  "unsaid": dict(vision_cfg=VISION, text_cfg={k: TEXT[k] for k in UNSAID}),
}


def theirs(torch, model, batch):
  """Returns label -> output, as `peers.ours` labels them."""
  towers = {"image": model.visual.transformer, "text": model.transformer}
  modules = {
    f"{m}/block_{i:02d}": layer
    for m, tower in towers.items()
    for i, layer in enumerate(tower.resblocks)
  }
  modules |= {"image/tokens": model.visual.ln_post, "text/tokens": model.ln_final}
  image, text = map(torch.from_numpy, batch)

  def call():
    return (
      model.encode_image(image),
      model.encode_text(text),
      model.get_logits(image, text),
    )

  out, seen = peers.recorded(torch, modules, call)
  seen["image/embedding"], seen["text/embedding"] = (x.numpy() for x in out[:2])
  return seen | {"logits": out[2][0].numpy()}


@pytest.fixture(scope="module")
def library():
  return peers.library("open_clip")


@pytest.mark.parametrize("name", CARDS)
def test_every_layer_is_the_same_in_both_directions(library, name):
  torch, open_clip = library
  card = dict(embed_dim=8) | CARDS[name]
  with peers.quiet():
    model = peers.randomised(torch, open_clip.model.CLIP(**card))
  state = peers.state_of(model)
  config, params, found = convert.load(state, {"model_cfg": card})
  assert found.missing == () and found.unused == ()
  batch, their_batch = peers.batch_of(config.model.modalities.text.eos)
  with peers.quiet():
    want = theirs(torch, model, their_batch)
  got, mask = peers.ours(config, params, batch)
  peers.compare(got, want, mask)

  back, given = convert.save(config, params, "open_clip")
  for key in {*state} - {"visual.class_embedding", "visual.positional_embedding"}:
    np.testing.assert_array_equal(back[key], state[key])
  with peers.quiet():
    other = open_clip.model.CLIP(**given["model_cfg"]).eval()
    other.load_state_dict({k: torch.from_numpy(v) for k, v in back.items()})
    again = theirs(torch, other, their_batch)
  peers.compare(again, want, mask)
  again_config, again_params, _ = convert.load(back, given)
  assert again_config == config
  jax.tree.map(np.testing.assert_array_equal, again_params, params)


def test_files_of_the_command_load_in_the_peer(library, tmp_path):
  torch, open_clip = library
  card = dict(embed_dim=8) | CARDS["quick"]
  theirs_at, ours_at, back_at = (str(tmp_path / name) for name in ("a", "b", "c"))
  with peers.quiet():
    model = peers.randomised(torch, open_clip.model.CLIP(**card))
  state = peers.state_of(model)
  beside = {files.CONFIGS["open_clip"]: {"model_cfg": card}}
  files.write(pathlib.Path(theirs_at), "open_clip", state, beside)
  tool.main(["--from", theirs_at, "--to", ours_at, "--format", "concord"])
  tool.main(["--from", ours_at, "--to", back_at, "--format", "open_clip"])
  with peers.quiet():
    other = open_clip.create_model(f"local-dir:{back_at}").eval()
  _, batch = peers.batch_of(peers.TEXT["vocab"] - 1)
  image, text = map(torch.from_numpy, batch)
  with torch.no_grad(), peers.quiet():
    for call in ("encode_image", "encode_text"):
      x = image if call == "encode_image" else text
      got, want = getattr(other, call)(x), getattr(model, call)(x)
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_open_clip_takes_the_tokenizer_that_comes_along(library, tmp_path):
  _, open_clip = library
  _, transformers = peers.library("transformers")
  letters = {x + end: i for i, (x, end) in enumerate(
    (x, end) for end in ("", "</w>") for x in "abcdert")}  # fmt: skip
  ends = {name: 14 + i for i, name in enumerate(("<|startoftext|>", "<|endoftext|>"))}
  (tmp_path / "a").mkdir()
  (tmp_path / "a" / "vocab.json").write_text(json.dumps(letters | ends))
  (tmp_path / "a" / "merges.txt").write_text("#version: 0.2\n")
  with peers.quiet():
    transformers.CLIPTokenizer.from_pretrained(tmp_path / "a").save_pretrained(
      tmp_path / "b"
    )
    text = TEXT | dict(vocab_size=16, hf_tokenizer_name="x")
    card = dict(embed_dim=8, vision_cfg=VISION, text_cfg=text)
    state = peers.state_of(open_clip.model.CLIP(**card))
  given = {files.CONFIGS["open_clip"]: {"model_cfg": card}}
  files.write(tmp_path / "b", "open_clip", state, given)
  b, c, d = (str(tmp_path / name) for name in "bcd")
  tool.main(["--from", b, "--to", c, "--format", "concord"])
  tool.main(["--from", c, "--to", d, "--format", "open_clip"])
  with peers.quiet():
    want, got = (open_clip.get_tokenizer(f"local-dir:{x}") for x in (b, d))
    want, got = (t(["a red cat", "bed"]).tolist() for t in (want, got))
  assert got == want and max(map(max, got)) == 15


def siglip_of(torch, open_clip):
  """Returns (image tower, text tower): no model of timm's is tiny."""
  import timm

  norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
  vision = timm.models.VisionTransformer(
    img_size=peers.IMAGE["size"],
    patch_size=peers.IMAGE["patch"],
    embed_dim=128,  # 2 heads of 64, which is all that is read without timm's name
    depth=2,
    num_heads=2,
    mlp_ratio=0.25,
    class_token=False,
    global_pool="map",
    num_classes=0,
  )
  text = open_clip.transformer.TextTransformer(
    **TEXT, no_causal_mask=True, proj_bias=True, pool_type="last", output_dim=128,
    norm_layer=norm,
  )  # fmt: skip
  return [peers.randomised(torch, tower) for tower in (vision, text)]


def test_siglip_is_the_same_in_every_layer(library):
  torch, open_clip = library
  with peers.quiet():
    vision, text = siglip_of(torch, open_clip)
  state = {f"visual.trunk.{k}": v for k, v in peers.state_of(vision).items()}
  state |= {f"text.{k}": v for k, v in peers.state_of(text).items()}
  scale, bias = np.float32(1.5), np.float32(-2)
  state |= {"logit_scale": np.asarray(scale), "logit_bias": np.asarray(bias)}
  said = dict(no_causal_mask=True, pool_type="last", norm_kwargs={"eps": 1e-6})
  given = dict(model_cfg=dict(text_cfg=TEXT | said))
  config, params, found = convert.load(state, given)
  assert found.missing == () and found.unused == ()

  batch, their_batch = peers.batch_of(-1)
  image, ids = map(torch.from_numpy, their_batch)
  layers = {"image": vision.blocks, "text": text.transformer.resblocks}
  modules = {
    f"{m}/block_{i:02d}": layer
    for m, blocks in layers.items()
    for i, layer in enumerate(blocks)
  }
  modules |= {"image/tokens": vision.norm, "text/tokens": text.ln_final}
  with peers.quiet():
    out, want = peers.recorded(torch, modules, lambda: (vision(image), text(ids)))
  want["image/embedding"], want["text/embedding"] = (x.numpy() for x in out)
  unit = [torch.nn.functional.normalize(x, dim=-1).numpy() for x in out]
  want["logits"] = np.exp(scale) * unit[0] @ unit[1].T + bias
  got, mask = peers.ours(config, params, batch)
  peers.compare(got, want, mask)

  kind = convert.recognise(state, given)
  flat = traverse_util.flatten_dict(params, sep="/")
  back = rules.write(kind.rules(*describe.towers(config.model, kind)), flat)
  jax.tree.map(np.testing.assert_array_equal, back, state)


@pytest.mark.parametrize("name", ["ViT-B-16-SigLIP", "ViT-SO400M-16-SigLIP2-384"])
def test_the_shapes_of_whole_siglip_models_are_theirs(library, name):
  torch, open_clip = library
  card = open_clip.get_model_config(name)
  whole = {k: v for k, v in card.items() if k != "custom_text"}
  with peers.quiet(), torch.device("meta"):
    model = open_clip.model.CustomTextCLIP(**whole)
  shapes = {k: v.shape for k, v in model.state_dict().items()}
  state = {k: np.broadcast_to(np.float32(0), tuple(s)) for k, s in shapes.items()}
  kind = convert.recognise(state, card)
  config = kind.describe(state, card)
  image, text = describe.towers(config.model, kind)
  given = kind.card(image, text, config.model.embed_dim)["model_cfg"]
  width, ratio = (given["text_cfg"][key] for key in ("width", "mlp_ratio"))
  assert int(width * ratio) == config.model.trunk.mlp
  given["text_cfg"].pop("mlp_ratio")
  for part in ("vision_cfg", "text_cfg"):
    told = {k: v for k, v in given[part].items() if k in card[part]}
    assert told == {k: v for k, v in card[part].items() if k in told}
  assert given["vision_cfg"]["timm_model_name"] == card["vision_cfg"]["timm_model_name"]
  names = [name for rule in kind.rules(image, text) for name in rule.theirs]
  assert sorted(names) == sorted(shapes)
