"""open_clip: ViT CLIP (arXiv 2103.00020), and SigLIP (2303.15343) on timm's ViT."""

from collections.abc import Mapping
import math
from typing import Any

from ml_collections import ConfigDict

from model.encoders.config import Modality
from model.interop import describe, rules
from model.interop.describe import Format
from model.interop.rules import Arrays, Rule

# What no shape shows: key of vision_cfg or text_cfg -> the value that is read.
_CLIP_SAID = (
  dict(pool_type="tok", attentional_pool=False),
  dict(pool_type="argmax", no_causal_mask=False, embed_cls=False),
)
_SIGLIP_SAID = (
  dict(timm_pool="map"),
  dict(pool_type="last", no_causal_mask=True, embed_cls=False),
)
_Q, _KV = ("query",), ("key", "value")
# SigLIP's image towers in timm (1.0.31): width, depth, heads, mlp -> its name there.
_TIMM = {
  (768, 12, 12, 3072): "vit_base",
  (1024, 24, 16, 4096): "vit_large",
  (1152, 27, 16, 4304): "vit_so400m",
  (1536, 40, 16, 6144): "vit_giantopt",
}
# Name, patch -> sizes of images; those that are not in _TANH have the exact GELU.
_SIZES = {
  "vit_base_patch32": (256,),
  "vit_base_patch16": (224, 256, 384, 512),
  "vit_large_patch16": (256, 384, 512),
  "vit_so400m_patch14": (224, 378, 384),
  "vit_so400m_patch16": (256, 384, 512),
  "vit_giantopt_patch16": (256, 384),
}
_TANH = (
  "vit_base_patch32_siglip_256",
  "vit_large_patch16_siglip_512",
  "vit_so400m_patch16",
  "vit_giantopt",
)


def _clip(state: Arrays, given: Mapping[str, Any]) -> ConfigDict:
  given, vision, text = _said(given, _CLIP_SAID)
  image_trunk = _trunk(state, "visual.transformer", vision, given, 1e-5)
  head_width = vision.get("head_width", 64)
  image_trunk["heads"] = describe.heads(
    image_trunk["width"], image_trunk["width"] // head_width
  )
  text_trunk = _trunk(state, "transformer", text, given, 1e-5) | dict(causal=True)
  n, _ = describe.shape(state, "visual.positional_embedding", 2)
  image = dict(
    pool="cls",
    stem_bias=False,
    stem_norm=True,
    **_pixels(state, "visual.conv1.weight", n - 1),
  )
  ids = _ids(state, "")
  ids["eos"] = ids["vocab"] - 1  # the greatest id: pool_type "argmax"
  _, embed_dim = describe.shape(state, "text_projection", 2)
  return describe.two_towers("clip", embed_dim, (image_trunk, text_trunk), image, ids)


def _siglip(state: Arrays, given: Mapping[str, Any]) -> ConfigDict:
  given, vision, text = _said(given, _SIGLIP_SAID)
  blocks = "visual.trunk.blocks."
  mlp, width = describe.shape(state, f"{blocks}0.mlp.fc1.weight", 2)
  depth, name = describe.depth(state, blocks), vision.get("timm_model_name", "")
  known = (h for w, d, h, m in _TIMM if (w, d, m) == (width, depth, mlp))
  trunk = dict(
    width=width,
    depth=depth,
    heads=describe.heads(width, next(known, None)),
    mlp=mlp,
    epsilon=1e-6,
    activation="gelu_tanh" if name.startswith(_TANH) else "gelu",
    causal=False,
  )
  _, n, _ = describe.shape(state, "visual.trunk.pos_embed", 3)
  pixels = _pixels(state, "visual.trunk.patch_embed.proj.weight", n)
  c = describe.two_towers(
    "siglip",
    width,
    (trunk, _trunk(state, "text.transformer", text, given, 1e-6)),
    dict(pool="map", project=False, **pixels),
    dict(project_bias=True, **_ids(state, "text.")),
  )
  c.objective.options.losses = describe.SIGLIP_LOSS
  return c


def _said(
  given: Mapping[str, Any], read: tuple[dict[str, Any], dict[str, Any]]
) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]:
  """Returns the model's, the vision tower's and the text tower's config.

  Raises:
    ValueError: it asks for what is not read.
  """
  given = given.get("model_cfg", given)
  parts = given.get("vision_cfg") or {}, given.get("text_cfg") or {}
  for name, part, wanted in zip(("vision_cfg", "text_cfg"), parts, read):
    for key, value in wanted.items():
      if part.get(key, value) != value:
        raise ValueError(
          f"the checkpoint's config has {name}.{key} = {part[key]!r}: only {value!r} "
          "is read"
        )
  return given, *parts


def _trunk(
  state: Arrays,
  name: str,
  said: Mapping[str, Any],
  given: Mapping[str, Any],
  epsilon: float,
) -> dict[str, Any]:
  """Returns a trunk of open_clip's own transformer; epsilon if nothing is said."""
  blocks = f"{name}.resblocks."
  mlp, width = describe.shape(state, f"{blocks}0.mlp.c_fc.weight", 2)
  tanh = (said.get("act_kwargs") or {}).get("approximate") == "tanh"
  activation = "gelu_tanh" if tanh else "gelu"
  return dict(
    width=width,
    depth=describe.depth(state, blocks),
    heads=describe.heads(width, said.get("heads")),
    mlp=mlp,
    epsilon=(said.get("norm_kwargs") or {}).get("eps", epsilon),
    activation="quick_gelu" if given.get("quick_gelu") else activation,
    causal=False,
  )


def _pixels(state: Arrays, name: str, n: int) -> dict[str, Any]:
  _, channels, *patch = describe.shape(state, name, 4)
  return dict(patch=tuple(patch), size=describe.size(n, patch, channels))


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
    timm_model_name=_timm_name(image),
    timm_model_pretrained=False,
    timm_pool="map",
    timm_proj="none",
  )
  said = dict(embed_dim=embed_dim, init_logit_bias=-10, custom_text=True)
  return dict(model_cfg=said | dict(vision_cfg=vision, text_cfg=own))


def _timm_name(image: Modality) -> str:
  """Returns what timm calls an image tower.

  Raises:
    ValueError: it has no such tower.
  """
  t, side = image.trunk, image.size[0]
  stem = f"{_TIMM.get((t.width, t.depth, t.heads, t.mlp))}_patch{image.patch[0]}"
  name = f"{stem}_siglip_{side}"
  activation = "gelu_tanh" if name.startswith(_TANH) else "gelu"
  if side not in _SIZES.get(stem, ()) or (t.activation, t.epsilon) != (
    activation,
    1e-6,
  ):
    raise ValueError(
      "open_clip takes SigLIP's image towers from timm, which has none of width "
      f"{t.width}, depth {t.depth}, {t.heads} heads, mlp {t.mlp}, activation "
      f"{t.activation!r} and epsilon {t.epsilon} for images of {side} in patches of "
      f"{image.patch[0]} ({describe.WHERE}.trunk, .modalities.image)"
    )
  return name


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
