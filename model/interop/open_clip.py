"""open_clip: ViT CLIP (arXiv 2103.00020), and SigLIP (2303.15343) on timm's ViT."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from ml_collections import ConfigDict

from model.encoders.config import Modality
from model.interop import describe, rules, timm_names
from model.interop.describe import Format
from model.interop.rules import Arrays, Rule
from model.interop.said import Said

# What no shape shows: key of vision_cfg or text_cfg -> the value that is read.
_CLIP_SAID = (
  dict(pool_type="tok", attentional_pool=False),
  dict(pool_type="argmax", no_causal_mask=False, embed_cls=False),
)
_SIGLIP_SAID = (
  dict(timm_pool="map"),
  dict(pool_type="last", no_causal_mask=True, embed_cls=False),
)
# What open_clip takes where a config of its does not say it.
_UNSAID = dict(
  vision_cfg=dict(pool_type="tok", attentional_pool=False, timm_pool="avg"),
  text_cfg=dict(pool_type="argmax", no_causal_mask=False, embed_cls=False),
)
_HEADS, _HEAD_WIDTH, _EPSILON = 8, 64, 1e-5  # heads of texts, their width in images
_FILE = "open_clip_config.json"
_Q, _KV = ("query",), ("key", "value")


def _clip(state: Arrays, given: Mapping[str, Any]) -> ConfigDict:
  said, vision, text = _said(given, _CLIP_SAID)
  quick = bool(said.keys.get("quick_gelu"))
  image_trunk = _trunk(state, "visual.transformer", vision, quick)
  width = image_trunk["width"]
  heads = width // vision.whole("head_width", _HEAD_WIDTH)
  image_trunk["heads"] = describe.heads(width, heads)
  text_trunk = _trunk(state, "transformer", text, quick)
  text_trunk |= dict(causal=True, heads=_heads(text_trunk["width"], text))
  n, _ = describe.shape(state, "visual.positional_embedding", 2)
  image = dict(
    pool="cls",
    stem_bias=False,
    stem_norm=True,
    **_pixels(state, "visual.conv1.weight", n - 1, vision),
  )
  ids = _ids(state, "")
  ids["eos"] = ids["vocab"] - 1  # the greatest id: pool_type "argmax"
  _, embed_dim = describe.shape(state, "text_projection", 2)
  return describe.two_towers("clip", embed_dim, (image_trunk, text_trunk), image, ids)


def _siglip(state: Arrays, given: Mapping[str, Any]) -> ConfigDict:
  said, vision, text = _said(given, _SIGLIP_SAID)
  blocks = "visual.trunk.blocks."
  mlp, width = describe.shape(state, f"{blocks}0.mlp.fc1.weight", 2)
  depth, name = describe.depth(state, blocks), str(vision.keys.get("timm_model_name"))
  timm_names.check(name, width, depth, mlp)
  known = (h for w, d, h, m in timm_names.TOWERS if (w, d, m) == (width, depth, mlp))
  trunk = dict(
    width=width,
    depth=depth,
    heads=describe.heads(width, next(known, None)),
    mlp=mlp,
    epsilon=1e-6,
    activation=timm_names.activation(name),
    causal=False,
  )
  _, n, _ = describe.shape(state, "visual.trunk.pos_embed", 3)
  pixels = _pixels(state, "visual.trunk.patch_embed.proj.weight", n, vision)
  usual = _EPSILON if text.keys else 1e-6
  own = _trunk(
    state, "text.transformer", text, bool(said.keys.get("quick_gelu")), usual
  )
  own |= dict(heads=_heads(own["width"], text))
  c = describe.two_towers(
    "siglip",
    width,
    (trunk, own),
    dict(pool="map", project=False, **pixels),
    dict(project_bias=True, **_ids(state, "text.")),
  )
  c.objective.options.losses = describe.SIGLIP_LOSS
  return c


def _said(
  given: Mapping[str, Any], read: tuple[dict[str, Any], dict[str, Any]]
) -> tuple[Said, Said, Said]:
  """Returns the model's, the vision tower's and the text tower's config.

  Raises:
    ValueError: it asks for what is not read.
  """
  said = Said(given, file=_FILE)
  said = said.part("model_cfg") if "model_cfg" in given else said
  parts = said.part("vision_cfg"), said.part("text_cfg")
  for (name, unsaid), part, wanted in zip(_UNSAID.items(), parts, read):
    for key, value in wanted.items() if part.keys else ():
      got = part.keys.get(key, unsaid[key])
      if got != value:
        usual = ", which open_clip takes if nothing is said" * (key not in part.keys)
        raise ValueError(
          f"{_FILE} has {name}.{key} = {got!r}{usual}: only {value!r} is read"
        )
  return said, *parts


def _heads(width: int, text: Said) -> int:
  """Returns the heads of a text tower; without a config, they are of 64."""
  return describe.heads(width, text.whole("heads", _HEADS) if text.keys else None)


def _trunk(
  state: Arrays, name: str, said: Said, quick: bool, epsilon: float = _EPSILON
) -> dict[str, Any]:
  """Returns a trunk of open_clip's own transformer, but for its heads.

  Args:
    state: the arrays.
    name: of the transformer.
    said: of the tower.
    quick: whether the model has quick_gelu.
    epsilon: if nothing is said.
  """
  blocks = f"{name}.resblocks."
  mlp, width = describe.shape(state, f"{blocks}0.mlp.c_fc.weight", 2)
  tanh = said.part("act_kwargs").keys.get("approximate") == "tanh"
  depth = describe.depth(state, blocks)
  said.agrees(width=width, layers=depth)
  activation = "gelu_tanh" if tanh else "gelu"
  return dict(
    width=width,
    depth=depth,
    mlp=mlp,
    epsilon=said.part("norm_kwargs").number("eps", epsilon),
    activation="quick_gelu" if quick else activation,
    causal=False,
  )


def _pixels(state: Arrays, name: str, n: int, said: Said) -> dict[str, Any]:
  _, channels, *patch = describe.shape(state, name, 4)
  size = describe.size(n, patch, channels)
  said.tiled(patch, size)
  return dict(patch=tuple(patch), size=size)


def _ids(state: Arrays, prefix: str) -> dict[str, Any]:
  vocab, _ = describe.shape(state, f"{prefix}token_embedding.weight", 2)
  length, _ = describe.shape(state, f"{prefix}positional_embedding", 2)
  return dict(vocab=vocab, length=length, pool="last", pad=-1)


def _blocks(m: Modality, name: str) -> list[Rule]:
  out = []
  for i in range(m.trunk.depth):
    ours, theirs = f"towers/trunk_{m.name}/block_{i:02d}", f"{name}.resblocks.{i}"
    out += rules.norm(f"{ours}/norm1", f"{theirs}.ln_1")
    out += rules.packed_attention(f"{ours}/attention", f"{theirs}.attn", m.trunk.heads)
    out += rules.norm(f"{ours}/norm2", f"{theirs}.ln_2")
    out += rules.linear(f"{ours}/mlp/up", f"{theirs}.mlp.c_fc")
    out += rules.linear(f"{ours}/mlp/down", f"{theirs}.mlp.c_proj")
  return out


def _text(text: Modality, prefix: str) -> list[Rule]:
  return [
    rules.one("towers/stem_text/embed/embedding", f"{prefix}token_embedding.weight"),
    rules.one("towers/stem_text/position", f"{prefix}positional_embedding"),
    *_blocks(text, f"{prefix}transformer"),
    *rules.norm("towers/trunk_text/norm", f"{prefix}ln_final"),
  ]


def _sigmoid(state: Arrays, given: Mapping[str, Any]) -> ConfigDict:
  c = _clip(state, given)
  c.objective.options.losses = describe.SIGLIP_LOSS
  return c


def _sigmoid_rules(image: Modality, text: Modality) -> list[Rule]:
  return [
    *_clip_rules(image, text)[:-1],
    rules.one("objective/siglip/log_scale", "logit_scale"),
    rules.one("objective/siglip/bias", "logit_bias"),
  ]


def _clip_rules(image: Modality, text: Modality) -> list[Rule]:
  embed = "towers/stem_image/embed", "visual.conv1"
  return [
    *rules.patches(*embed, image.patch, image.size[2], bias=False),
    rules.class_token(
      "towers/pool_image/cls",
      "towers/stem_image/position",
      "visual.class_embedding",
      "visual.positional_embedding",
    ),
    *rules.norm("towers/norm_image", "visual.ln_pre"),
    *_blocks(image, "visual.transformer"),
    *rules.norm("towers/trunk_image/norm", "visual.ln_post"),
    rules.one("towers/project_image/kernel", "visual.proj"),
    *_text(text, ""),
    rules.one("towers/project_text/kernel", "text_projection"),
    rules.one("objective/infonce/log_scale", "logit_scale"),
  ]


def _siglip_rules(image: Modality, text: Modality) -> list[Rule]:
  trunk, heads, ours = "visual.trunk", image.trunk.heads, "towers/trunk_image"
  pool, theirs = "towers/pool_image", "visual.trunk.attn_pool"
  out = rules.patches(
    "towers/stem_image/embed",
    f"{trunk}.patch_embed.proj",
    image.patch,
    image.size[2],
    bias=True,
  )
  out.append(rules.led("towers/stem_image/position", f"{trunk}.pos_embed", 1))
  for i in range(image.trunk.depth):
    block, there = f"{ours}/block_{i:02d}", f"{trunk}.blocks.{i}"
    qkv = [f"{block}/attention/{part}" for part in ("query", "key", "value")]
    packed = f"{there}.attn.qkv.weight", f"{there}.attn.qkv.bias"
    out += rules.norm(f"{block}/norm1", f"{there}.norm1")
    out += rules.projections(qkv, *packed, heads)
    out += rules.attended(f"{block}/attention/out", f"{there}.attn.proj", heads)
    out += rules.norm(f"{block}/norm2", f"{there}.norm2")
    out += rules.linear(f"{block}/mlp/up", f"{there}.mlp.fc1")
    out += rules.linear(f"{block}/mlp/down", f"{there}.mlp.fc2")
  query, kv = ([f"{pool}/attention/{p}" for p in part] for part in (_Q, _KV))
  return [
    *out,
    *rules.norm(f"{ours}/norm", f"{trunk}.norm"),
    rules.led(f"{pool}/probe", f"{theirs}.latent", 2),
    *rules.projections(query, f"{theirs}.q.weight", f"{theirs}.q.bias", heads),
    *rules.projections(kv, f"{theirs}.kv.weight", f"{theirs}.kv.bias", heads),
    *rules.attended(f"{pool}/attention/out", f"{theirs}.proj", heads),
    *rules.norm(f"{pool}/norm", f"{theirs}.norm"),
    *rules.linear(f"{pool}/mlp/up", f"{theirs}.mlp.fc1"),
    *rules.linear(f"{pool}/mlp/down", f"{theirs}.mlp.fc2"),
    *_text(text, "text."),
    *rules.linear("towers/project_text", "text.text_projection"),
    rules.one("objective/siglip/log_scale", "logit_scale"),
    rules.one("objective/siglip/bias", "logit_bias"),
  ]


def _clip_card(image: Modality, text: Modality, embed_dim: int) -> dict[str, Any]:
  if text.eos != text.vocab - 1:
    raise ValueError(
      f"{describe.WHERE}.modalities.text.eos = {text.eos}, expected the greatest id, "
      f"{text.vocab - 1}: open_clip pools there"
    )
  quick = {m.trunk.activation == "quick_gelu" for m in (image, text)}
  if len(quick) > 1:
    raise ValueError(
      "open_clip has quick_gelu in both towers or in none, the model in one: "
      f"{describe.WHERE}.trunk.activation"
    )
  vision = _card(image) | dict(
    image_size=image.size[0],
    patch_size=image.patch[0],
    head_width=image.trunk.width // image.trunk.heads,
  )
  own = _card(text) | dict(
    context_length=text.length, vocab_size=text.vocab, heads=text.trunk.heads
  )
  said = dict(embed_dim=embed_dim, quick_gelu=quick == {True})
  return dict(model_cfg=said | dict(vision_cfg=vision, text_cfg=own))


def _sigmoid_card(image: Modality, text: Modality, embed_dim: int) -> dict[str, Any]:
  card = _clip_card(image, text, embed_dim)
  card["model_cfg"] |= dict(init_logit_bias=-10)
  return card


def _siglip_card(image: Modality, text: Modality, embed_dim: int) -> dict[str, Any]:
  own = _card(text) | dict(
    context_length=text.length,
    vocab_size=text.vocab,
    heads=text.trunk.heads,
    no_causal_mask=True,
    proj_bias=True,
    pool_type="last",
  )
  vision = dict(
    image_size=image.size[0],
    timm_model_name=timm_names.of(image),
    timm_model_pretrained=False,
    timm_pool="map",
    timm_proj="none",
  )
  said = dict(embed_dim=embed_dim, init_logit_bias=-10, custom_text=True)
  return dict(model_cfg=said | dict(vision_cfg=vision, text_cfg=own))


def mlp_ratio(width: int, mlp: int) -> float:
  """Returns the ratio that open_clip multiplies the width by, and rounds down."""
  ratio = mlp / width
  return ratio if int(width * ratio) == mlp else math.nextafter(ratio, math.inf)


def _card(m: Modality) -> dict[str, Any]:
  t = m.trunk
  said: dict[str, Any] = dict(
    width=t.width, layers=t.depth, mlp_ratio=mlp_ratio(t.width, t.mlp)
  )
  said["norm_kwargs"] = dict(eps=t.epsilon)
  if t.activation == "gelu_tanh":
    said["act_kwargs"] = dict(approximate="tanh")
  return said


CLIP = Format(
  "open_clip",
  "CLIP",
  ("visual.class_embedding",),
  _clip,
  describe.CLIP_IMAGE,
  describe.CLIP_TEXT,
  _clip_rules,
  _clip_card,
  describe.CLIP_PIXELS,
  loss="infonce",
  harmless=("input_resolution", "context_length", "vocab_size"),  # OpenAI's own
)
SIGMOID = dataclasses.replace(  # a CLIP trained with open_clip's --siglip
  CLIP,
  marks=(*CLIP.marks, "logit_bias"),
  describe=_sigmoid,
  rules=_sigmoid_rules,
  card=_sigmoid_card,
  loss="siglip",
)
SIGLIP = Format(
  "open_clip",
  "SigLIP",
  ("visual.trunk.attn_pool.latent",),
  _siglip,
  describe.SIGLIP_IMAGE,
  describe.SIGLIP_TEXT,
  _siglip_rules,
  _siglip_card,
  describe.SIGLIP_PIXELS,
  loss="siglip",
)
