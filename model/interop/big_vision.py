"""big_vision's two towers: SigLIP (arXiv 2303.15343) and LiT (2111.07991).

An .npz of slash-joined paths. Kernels stand as ours do, and say how many heads there
are; `t` is the logarithm of the scale, `b` the bias of the sigmoid loss. What poolings
without parameters do, no array shows: "mean" is read for images and "last" for texts,
which are its defaults.
"""

from collections.abc import Mapping
import re
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from model.encoders.config import Modality
from model.interop import describe, rules
from model.interop.describe import Format
from model.interop.rules import Arrays, Rule

PREFIXES = ("params/", "opt/target/", "target/")  # of whole train states
SCANNED = "/encoderblock/"  # blocks with a leading axis, as scan = True has them
_ATTENTION = "MultiHeadDotProductAttention_0"
POOLS = {"map": "map", "cls": "tok", "mean": "gap"}  # ours -> theirs
PIXELS = describe.SIGLIP_PIXELS | dict(filter="bilinear")
_IMAGE = describe.plain(describe.SIGLIP_IMAGE, "pool", "project", "project_bias")
_TEXT = describe.SIGLIP_TEXT
_TRUNK = dict(activation="gelu_tanh", epsilon=1e-6)


def normal(state: Arrays) -> dict[str, np.ndarray]:
  """Returns a checkpoint with one array per block, and no prefix of a train state.

  The positions of texts that some old ones hold twice are added up, as there.
  """
  prefix = next((p for p in PREFIXES if f"{p}img/embedding/kernel" in state), "")
  out: dict[str, np.ndarray] = {}
  for name, x in state.items():
    if not name.startswith(prefix):
      continue
    name = name.removeprefix(prefix)
    if SCANNED in name:
      for i, layer in enumerate(x):
        out[name.replace(SCANNED, f"/encoderblock_{i}/")] = layer
    else:
      out[name] = x
  twice = out.pop("txt/Encoder_0/pos_embedding", None)
  if twice is not None and "txt/pos_embedding" in out:
    out["txt/pos_embedding"] = out["txt/pos_embedding"] + twice
  return out


def scanned(state: Arrays) -> dict[str, np.ndarray]:
  """Returns a checkpoint with all blocks of a tower in one array, as scan = True."""
  out: dict[str, Any] = {}
  for name in sorted(state, key=_order):
    place, count = re.subn(r"/encoderblock_\d+/", SCANNED, name)
    if count:
      out.setdefault(place, []).append(state[name])
    else:
      out[place] = state[name]
  return {k: np.stack(x) if isinstance(x, list) else x for k, x in out.items()}


def _order(name: str) -> tuple[int, str]:
  match = re.search(r"/encoderblock_(\d+)/", name)
  return (int(match[1]) if match else 0, name)


def _describe(state: Arrays, given: Mapping[str, Any]) -> ConfigDict:
  del given  # there is none
  high, wide, channels, _ = describe.shape(state, "img/embedding/kernel", 4)
  _, n, _ = describe.shape(state, "img/pos_embedding", 3)
  vocab, _ = describe.shape(state, "txt/Embed_0/embedding", 2)
  _, length, _ = describe.shape(state, "txt/pos_embedding", 3)
  _, embed_dim = describe.shape(state, "txt/head/kernel", 2)
  pool = "map" if "img/MAPHead_0/probe" in state else "mean"
  project = "img/head/kernel" in state
  image = dict(
    size=describe.size(n, (high, wide), channels),
    patch=(high, wide),
    pool="cls" if "img/cls" in state else pool,
    project=project,
    project_bias=project,
  )
  text = dict(vocab=vocab, length=length, pool="last", pad=-1, project_bias=True)
  trunks = _trunk(state, "img/Transformer"), _trunk(state, "txt/Encoder_0")
  c = describe.two_towers("big_vision", embed_dim, trunks, image, text)
  if "b" in state:
    c.objective.options.losses = describe.SIGLIP_LOSS
  return c


def _trunk(state: Arrays, encoder: str) -> dict[str, Any]:
  block = f"{encoder}/encoderblock_"
  width, mlp = describe.shape(state, f"{block}0/MlpBlock_0/Dense_0/kernel", 2)
  _, heads, _ = describe.shape(state, f"{block}0/{_ATTENTION}/query/kernel", 3)
  depth = describe.depth(state, block, "/")
  return dict(width=width, depth=depth, heads=heads, mlp=mlp, causal=False, **_TRUNK)


def _layer(ours: str, theirs: str, *parts: str) -> list[Rule]:
  return [
    rules.one(f"{ours}/{p}", f"{theirs}/{p}") for p in parts or ("kernel", "bias")
  ]


def _attention(ours: str, theirs: str) -> list[Rule]:
  parts = ("query", "key", "value", "out")
  return [r for p in parts for r in _layer(f"{ours}/{p}", f"{theirs}/{p}")]


def _encoder(m: Modality, theirs: str) -> list[Rule]:
  ours = f"towers/trunk_{m.name}"
  out = _layer(f"{ours}/norm", f"{theirs}/encoder_norm", "scale", "bias")
  for i in range(m.trunk.depth):
    a, b = f"{ours}/block_{i:02d}", f"{theirs}/encoderblock_{i}"
    out += _layer(f"{a}/norm1", f"{b}/LayerNorm_0", "scale", "bias")
    out += _attention(f"{a}/attention", f"{b}/{_ATTENTION}")
    out += _layer(f"{a}/norm2", f"{b}/LayerNorm_1", "scale", "bias")
    out += _layer(f"{a}/mlp/up", f"{b}/MlpBlock_0/Dense_0")
    out += _layer(f"{a}/mlp/down", f"{b}/MlpBlock_0/Dense_1")
  return out


def _rules(image: Modality, text: Modality) -> list[Rule]:
  high, wide = image.patch
  kernel = rules.one(
    "towers/stem_image/embed/kernel",
    "img/embedding/kernel",
    lambda x: x.reshape(-1, x.shape[-1]),
    lambda x: x.reshape(high, wide, image.size[2], -1),
  )
  out = [
    kernel,
    rules.one("towers/stem_image/embed/bias", "img/embedding/bias"),
    rules.led("towers/stem_image/position", "img/pos_embedding", 1),
    *_encoder(image, "img/Transformer"),
    rules.one("towers/stem_text/embed/embedding", "txt/Embed_0/embedding"),
    rules.led("towers/stem_text/position", "txt/pos_embedding", 1),
    *_encoder(text, "txt/Encoder_0"),
    *_layer("towers/project_text", "txt/head"),
  ]
  if image.pool == "cls":
    out.append(rules.led("towers/pool_image/cls", "img/cls", 2))
  if image.pool == "map":
    pool, head = "towers/pool_image", "img/MAPHead_0"
    out.append(rules.led(f"{pool}/probe", f"{head}/probe", 2))
    out += _attention(f"{pool}/attention", f"{head}/{_ATTENTION}")
    out += _layer(f"{pool}/norm", f"{head}/LayerNorm_0", "scale", "bias")
    out += _layer(f"{pool}/mlp/up", f"{head}/MlpBlock_0/Dense_0")
    out += _layer(f"{pool}/mlp/down", f"{head}/MlpBlock_0/Dense_1")
  if image.project:
    out += _layer("towers/project_image", "img/head")
  return out


def _softmax_rules(image: Modality, text: Modality) -> list[Rule]:
  return [*_rules(image, text), rules.led("objective/infonce/log_scale", "t", 1)]


def _sigmoid_rules(image: Modality, text: Modality) -> list[Rule]:
  return [
    *_rules(image, text),
    rules.led("objective/siglip/log_scale", "t", 1),
    rules.led("objective/siglip/bias", "b", 1),
  ]


def _card(image: Modality, text: Modality, embed_dim: int) -> dict[str, Any]:
  """Returns what big_vision's config.model says, to be copied there.

  Raises:
    ValueError: a pooling that it has not, or trunks that it cannot have.
  """
  for m in (image, text):
    for key, value in _TRUNK.items():
      if getattr(m.trunk, key) != value:
        raise ValueError(
          f"{describe.WHERE}.modalities.{m.name}.trunk.{key} = "
          f"{getattr(m.trunk, key)!r}, expected {value!r}: big_vision has no other"
        )
  if image.pool not in POOLS or image.project != image.project_bias:
    raise ValueError(
      f"{describe.WHERE}.modalities.image.pool = {image.pool!r}, project_bias = "
      f"{image.project_bias}: big_vision has the pools {', '.join(POOLS)}, and a bias "
      "wherever it projects"
    )

  def tower(m: Modality) -> dict[str, Any]:
    t = m.trunk
    return dict(width=t.width, depth=t.depth, mlp_dim=t.mlp, num_heads=t.heads)

  said = dict(patch_size=list(image.patch), pool_type=POOLS[image.pool], posemb="learn")
  return dict(
    image=tower(image) | said,
    text=tower(text) | dict(vocab_size=text.vocab, pool_type="last"),
    out_dim=[embed_dim if image.project else None, embed_dim],
  )


SIGLIP = Format(
  "big_vision",
  "two towers with a sigmoid loss",
  ("img/embedding/kernel", "b"),
  _describe,
  _IMAGE,
  _TEXT,
  _sigmoid_rules,
  _card,
  PIXELS,
  loss="siglip",
  normal=normal,
  stacked=scanned,
)
LIT = Format(
  "big_vision",
  "two towers with a softmax loss",
  ("img/embedding/kernel", "t"),
  _describe,
  _IMAGE,
  _TEXT,
  _softmax_rules,
  _card,
  PIXELS,
  loss="infonce",
  normal=normal,
  stacked=scanned,
)
