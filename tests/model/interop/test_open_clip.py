"""open_clip's models give what ours give, layer by layer, in both directions."""

import jax
import numpy as np
import pytest

from model.interop import convert
from tests.model.interop import peers

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
CARDS = {
  "quick": dict(quick_gelu=True, vision_cfg=VISION, text_cfg=TEXT),
  "own": dict(vision_cfg=VISION, text_cfg=TEXT | TANH),
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
