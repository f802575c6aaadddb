"""Hugging Face transformers: CLIPModel (arXiv 2103.00020), SiglipModel (2303.15343).

Siglip2Model (2502.14786) is read as what it is for images of one size, a SiglipModel.
"""

from collections.abc import Mapping
import math
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from model.encoders.config import Modality
from model.interop import describe, rules
from model.interop.describe import Format
from model.interop.rules import Arrays, Rule
from model.interop.said import Said

# Activations: theirs -> ours; the last of equal ones is what we write.
ACTIVATIONS = {
  "gelu_new": "gelu_tanh",
  "gelu_fast": "gelu_tanh",
  "gelu_pytorch_tanh": "gelu_tanh",
  "gelu": "gelu",
  "quick_gelu": "quick_gelu",
}
WRITTEN = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
_FIRST_EOS = 2  # of configs from before June 2023, which pool at the greatest id
_PARTS = ("vision", "text")
# A config.json leaves out what is transformers' default for its class: of the heads
# (image, text), and of the id that ends a text.
_CLIP_HEADS, _SIGLIP_HEADS, _CLIP_EOS = (12, 8), (12, 12), 49_407


def _clip(state: Arrays, given: Mapping[str, Any]) -> ConfigDict:
  said = _old(given)
  trunks = _trunks(state, said, _CLIP_HEADS, act="quick_gelu", epsilon=1e-5)
  trunks[1]["causal"] = True
  n, _ = describe.shape(state, "vision_model.embeddings.position_embedding.weight", 2)
  image = dict(
    pool="cls", stem_bias=False, stem_norm=True, **_pixels(state, n - 1, said)
  )
  text = _ids(state)
  unsaid = _CLIP_EOS if given and text["vocab"] > _CLIP_EOS else _FIRST_EOS
  eos = Said(said).part("text_config").whole("eos_token_id", unsaid, least=0)
  text["eos"] = text["vocab"] - 1 if eos == _FIRST_EOS else eos
  embed_dim, _ = describe.shape(state, "visual_projection.weight", 2)
  return describe.two_towers("clip", embed_dim, trunks, image, text)


def _old(given: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns a config without the text_config_dict and vision_config_dict of old ones.

  transformers takes one of these for all of the tower: what it leaves out is the
  default of the class, whatever text_config and vision_config say.
  """
  whole = {f"{part}_config": given.get(f"{part}_config_dict") for part in _PARTS}
  return {**given, **{key: value for key, value in whole.items() if value is not None}}


def _siglip(state: Arrays, given: Mapping[str, Any]) -> ConfigDict:
  trunks = _trunks(state, given, _SIGLIP_HEADS, act="gelu_pytorch_tanh", epsilon=1e-6)
  n, width = describe.shape(
    state, "vision_model.embeddings.position_embedding.weight", 2
  )
  image = dict(pool="map", project=False, **_pixels(state, n, given))
  text = dict(project_bias=True, **_ids(state))
  c = describe.two_towers("siglip", width, trunks, image, text)
  c.objective.options.losses = describe.SIGLIP_LOSS
  return c


def _trunks(
  state: Arrays,
  given: Mapping[str, Any],
  heads: tuple[int, int],
  act: str,
  epsilon: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the trunks of image and text; the last three where nothing is said.

  Without any config.json heads are of 64.
  """

  def trunk(model: str, usual: int) -> dict[str, Any]:
    said = Said(given).part(f"{model}_config")
    blocks = f"{model}_model.encoder.layers."
    mlp, width = describe.shape(state, f"{blocks}0.mlp.fc1.weight", 2)
    depth = describe.depth(state, blocks)
    sizes = dict(width=width, depth=depth, mlp=mlp)
    found = trunk_of(said, sizes, usual if given else None, act, epsilon)
    return found | dict(causal=False)

  return trunk("vision", heads[0]), trunk("text", heads[1])


def trunk_of(
  said: Said, sizes: Mapping[str, int], heads: int | None, act: str, epsilon: float
) -> dict[str, Any]:
  """Returns the keys of a trunk that its architectures name alike.

  Args:
    said: the config of the tower.
    sizes: width, depth and mlp of its arrays.
    heads: if nothing is said; None: there is no config, heads are of 64.
    act: activation, if nothing is said.
    epsilon: of norms, if nothing is said.

  Raises:
    ValueError: a config of other sizes, or a value that is none.
  """
  said.agrees(hidden_size=sizes["width"], num_hidden_layers=sizes["depth"])
  number = None if heads is None else said.whole("num_attention_heads", heads)
  return dict(
    **sizes,
    heads=describe.heads(sizes["width"], number),
    epsilon=said.number("layer_norm_eps", epsilon),
    activation=ACTIVATIONS[said.one_of("hidden_act", ACTIVATIONS, act)],
  )


def _pixels(state: Arrays, n: int, given: Mapping[str, Any]) -> dict[str, Any]:
  name = "vision_model.embeddings.patch_embedding.weight"
  _, channels, *patch = describe.shape(state, name, 4)
  size, said = describe.size(n, patch, channels), Said(given).part("vision_config")
  if "num_patches" in said.keys:  # Siglip2, of images of any size
    said.agrees(num_patches=n)
  else:
    said.tiled(patch, size)
  return dict(patch=tuple(patch), size=size)


def _ids(state: Arrays) -> dict[str, Any]:
  embeddings = "text_model.embeddings"
  vocab, _ = describe.shape(state, f"{embeddings}.token_embedding.weight", 2)
  length, _ = describe.shape(state, f"{embeddings}.position_embedding.weight", 2)
  return dict(vocab=vocab, length=length, pool="last", pad=-1)


def _tower(m: Modality, model: str, last: str) -> list[Rule]:
  """Returns the rules of the blocks and of the norm after them."""
  out = rules.norm(f"towers/trunk_{m.name}/norm", f"{model}.{last}")
  for i in range(m.trunk.depth):
    ours = f"towers/trunk_{m.name}/block_{i:02d}"
    theirs = f"{model}.encoder.layers.{i}"
    attention = f"{theirs}.self_attn"
    out += rules.norm(f"{ours}/norm1", f"{theirs}.layer_norm1")
    for part, name in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
      weight, bias = f"{attention}.{name}.weight", f"{attention}.{name}.bias"
      one = [f"{ours}/attention/{part}"]
      out += rules.projections(one, weight, bias, m.trunk.heads)
    out += rules.attended(
      f"{ours}/attention/out", f"{attention}.out_proj", m.trunk.heads
    )
    out += rules.norm(f"{ours}/norm2", f"{theirs}.layer_norm2")
    out += rules.linear(f"{ours}/mlp/up", f"{theirs}.mlp.fc1")
    out += rules.linear(f"{ours}/mlp/down", f"{theirs}.mlp.fc2")
  return out


def _text(text: Modality) -> list[Rule]:
  theirs = "text_model.embeddings"
  return [
    rules.one("towers/stem_text/embed/embedding", f"{theirs}.token_embedding.weight"),
    rules.one("towers/stem_text/position", f"{theirs}.position_embedding.weight"),
    *_tower(text, "text_model", "final_layer_norm"),
  ]


def _clip_rules(image: Modality, text: Modality) -> list[Rule]:
  theirs = "vision_model.embeddings"
  embed = "towers/stem_image/embed", f"{theirs}.patch_embedding"
  return [
    *rules.patches(*embed, image.patch, image.size[2], bias=False),
    rules.class_token(
      "towers/pool_image/cls",
      "towers/stem_image/position",
      f"{theirs}.class_embedding",
      f"{theirs}.position_embedding.weight",
    ),
    *rules.norm("towers/norm_image", "vision_model.pre_layrnorm"),
    *_tower(image, "vision_model", "post_layernorm"),
    *rules.linear("towers/project_image", "visual_projection", bias=False),
    *_text(text),
    *rules.linear("towers/project_text", "text_projection", bias=False),
    rules.one("objective/infonce/log_scale", "logit_scale"),
  ]


def _siglip_rules(image: Modality, text: Modality) -> list[Rule]:
  theirs, head = "vision_model.embeddings", "vision_model.head"
  embed = "towers/stem_image/embed", f"{theirs}.patch_embedding"
  attention = "towers/pool_image/attention", f"{head}.attention"
  return [
    *rules.patches(*embed, image.patch, image.size[2], bias=True),
    rules.one("towers/stem_image/position", f"{theirs}.position_embedding.weight"),
    *_tower(image, "vision_model", "post_layernorm"),
    rules.led("towers/pool_image/probe", f"{head}.probe", 2),
    *rules.packed_attention(*attention, image.trunk.heads),
    *rules.norm("towers/pool_image/norm", f"{head}.layernorm"),
    *rules.linear("towers/pool_image/mlp/up", f"{head}.mlp.fc1"),
    *rules.linear("towers/pool_image/mlp/down", f"{head}.mlp.fc2"),
    *_text(text),
    *rules.linear("towers/project_text", "text_model.head"),
    rules.led("objective/siglip/log_scale", "logit_scale", 1),
    rules.led("objective/siglip/bias", "logit_bias", 1),
  ]


def _card(image: Modality, text: Modality) -> dict[str, Any]:
  """Returns what the config.json of both architectures has in common."""

  def trunk(m: Modality) -> dict[str, Any]:
    return dict(
      hidden_size=m.trunk.width,
      intermediate_size=m.trunk.mlp,
      num_hidden_layers=m.trunk.depth,
      num_attention_heads=m.trunk.heads,
      hidden_act=WRITTEN[m.trunk.activation],
      layer_norm_eps=m.trunk.epsilon,
    )

  return dict(
    dtype="float32",
    vision_config=trunk(image)
    | dict(
      image_size=image.size[0], patch_size=image.patch[0], num_channels=image.size[2]
    ),
    text_config=trunk(text)
    | dict(vocab_size=text.vocab, max_position_embeddings=text.length),
  )


def _clip_card(image: Modality, text: Modality, embed_dim: int) -> dict[str, Any]:
  if text.eos == _FIRST_EOS and text.vocab > _FIRST_EOS + 1:
    raise ValueError(
      f"{describe.WHERE}.modalities.text.eos = {_FIRST_EOS}: transformers takes it for "
      "a sign of old configs and pools at the greatest id instead"
    )
  card = _card(image, text) | dict(
    architectures=["CLIPModel"], model_type="clip", projection_dim=embed_dim
  )
  for part in _PARTS:
    card[f"{part}_config"]["projection_dim"] = embed_dim
  # Ids that the model itself has no use for, but that must be in the vocabulary.
  ids = dict(eos_token_id=text.eos, bos_token_id=text.eos, pad_token_id=text.eos)
  card["text_config"] |= ids
  return card


def _siglip_card(image: Modality, text: Modality, embed_dim: int) -> dict[str, Any]:
  card = _card(image, text) | dict(architectures=["SiglipModel"], model_type="siglip")
  card["text_config"] |= dict(projection_size=embed_dim)
  return card


def _convolved(state: Arrays) -> dict[str, np.ndarray]:
  """Returns the state with the patches of Siglip2Model, a matrix, as a convolution.

  Theirs: [w, p * p * c], of square patches of three channels.

  Raises:
    ValueError: patches that are not square.
  """
  out, name = dict(state), "vision_model.embeddings.patch_embedding.weight"
  if name in out and out[name].ndim == 2:
    width, pixels = out[name].shape
    side = math.isqrt(pixels // 3)
    if 3 * side**2 != pixels:
      raise ValueError(
        f"{name} has shape {out[name].shape}, expected patches of 3 * p * p numbers"
      )
    out[name] = out[name].reshape(width, side, side, 3).transpose(0, 3, 1, 2)
  return out


CLIP = Format(
  "hf",
  "CLIPModel",
  ("vision_model.embeddings.class_embedding",),
  _clip,
  describe.CLIP_IMAGE,
  describe.CLIP_TEXT,
  _clip_rules,
  _clip_card,
  describe.CLIP_PIXELS,
  loss="infonce",
)
SIGLIP = Format(
  "hf",
  "SiglipModel",
  ("vision_model.head.probe",),
  _siglip,
  describe.SIGLIP_IMAGE,
  describe.SIGLIP_TEXT,
  _siglip_rules,
  _siglip_card,
  describe.SIGLIP_PIXELS,
  loss="siglip",
  normal=_convolved,
)
