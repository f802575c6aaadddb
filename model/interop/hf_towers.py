"""Single towers of transformers, to be frozen or to start from.

Dinov2Model and Dinov2WithRegistersModel (arXiv 2304.07193, 2309.16588): images.
BertModel (arXiv 1810.04805), with MiniLM and the sentence encoders made of it: texts.
"""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from configs import base
from model.encoders.config import Modality
from model.interop import describe, hf, rules
from model.interop.describe import Format
from model.interop.rules import Arrays, Rule
from model.interop.said import Said

_DINO_IMAGE = describe.plain(describe.CLIP_IMAGE, "registers", "layer_scale") | dict(
  stem_bias=True, stem_norm=False, project=False
)
_BERT_TEXT = describe.plain(describe.SIGLIP_TEXT, "pool", "pad", "project_bias") | dict(
  stem_norm=True, norm_after=True, project=False
)
_USUAL = "mean"  # pooling, where nothing is said
_POOLS = dict(mean="pooling_mode_mean_tokens", first="pooling_mode_cls_token")
_POOLING = "1_Pooling"
# What `resize` and `normalize` do for DINOv2, if nothing is said.
_DINO_PIXELS = dict(
  crop=224 / 256, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
)
_HEADS = 12
_DINO_PARTS = (
  ("norm1", "layernorm", "norm1"),
  ("norm2", "layernorm", "norm2"),
  ("mlp/up", "linear", "mlp.fc1"),
  ("mlp/down", "linear", "mlp.fc2"),
)


def _one(name: str, modality: str, width: int, trunk: dict, keys: dict) -> ConfigDict:
  """Returns a config of one modality, whose tower has no projection."""
  c = base.get_config()
  c.name = name
  c.model.embed_dim = width
  c.model.trunk.update(trunk)
  c.model.modalities = ConfigDict({modality: base.modality(project=False, **keys)})
  return c


def _trunk(
  said: Said, width: int, depth: int, mlp: int, epsilon: float
) -> dict[str, Any]:
  """Returns the keys of the trunk that both architectures name alike."""
  given = {*said.keys} - {"pool"}  # which is ours: see training/foreign.py
  sizes = dict(width=width, depth=depth, mlp=mlp)
  return hf.trunk_of(said, sizes, _HEADS if given else None, "gelu", epsilon)


def _dino(state: Arrays, given: Mapping[str, Any]) -> ConfigDict:
  layer = "encoder.layer."
  if f"{layer}0.mlp.fc1.weight" not in state:
    raise ValueError(
      "the checkpoint is a DINOv2 without mlp.fc1: of the SwiGLU kind (ViT-g), which "
      "Concord's towers have not"
    )
  mlp, width = describe.shape(state, f"{layer}0.mlp.fc1.weight", 2)
  _, n, _ = describe.shape(state, "embeddings.position_embeddings", 3)
  name = "embeddings.patch_embeddings.projection.weight"
  _, channels, *patch = describe.shape(state, name, 4)
  registers = state.get("embeddings.register_tokens", np.zeros((1, 0, width)))
  said, size = Said(given), describe.size(n - 1, patch, channels)
  said.tiled(patch, size)
  trunk = _trunk(said, width, describe.depth(state, layer), mlp, 1e-6)
  trunk |= dict(layer_scale=said.number("layerscale_value", 1.0))
  image = dict(
    size=size,
    patch=tuple(patch),
    pool="cls",
    registers=registers.shape[1],
  )
  return _one("dinov2", "image", width, trunk, image)


def _dino_rules(image: Modality, text: None) -> list[Rule]:
  del text
  theirs, pool = "embeddings", "towers/pool_image"
  patches = f"{theirs}.patch_embeddings.projection"
  out = rules.patches(
    "towers/stem_image/embed", patches, image.patch, image.size[2], bias=True
  )
  out.append(
    rules.class_token(
      f"{pool}/cls",
      "towers/stem_image/position",
      f"{theirs}.cls_token",
      f"{theirs}.position_embeddings",
      axes=(2, 1),
    )
  )
  if image.registers:
    out.append(rules.led(f"{pool}/registers", f"{theirs}.register_tokens", 1))
  out += rules.norm("towers/trunk_image/norm", "layernorm")
  for i in range(image.trunk.depth):
    ours, there = f"towers/trunk_image/block_{i:02d}", f"encoder.layer.{i}"
    out += _heads(ours, f"{there}.attention.attention", image.trunk.heads)
    attended = f"{there}.attention.output.dense"
    out += rules.attended(f"{ours}/attention/out", attended, image.trunk.heads)
    for part, kind, name in _DINO_PARTS:
      rule = rules.norm if kind == "layernorm" else rules.linear
      out += rule(f"{ours}/{part}", f"{there}.{name}")
    for k in (1, 2):
      scale = f"{there}.layer_scale{k}.lambda1"
      out.append(rules.one(f"{ours}/scale{k}", scale))
  return out


def _heads(ours: str, theirs: str, heads: int) -> list[Rule]:
  out: list[Rule] = []
  for part in ("query", "key", "value"):
    weight, bias = f"{theirs}.{part}.weight", f"{theirs}.{part}.bias"
    out += rules.projections([f"{ours}/attention/{part}"], weight, bias, heads)
  return out


def _dino_card(image: Modality, text: None, embed_dim: int) -> dict[str, Any]:
  del text, embed_dim
  t = image.trunk
  ratio = t.mlp / t.width
  if ratio * t.width != t.mlp or int(t.width * ratio) != t.mlp or not t.layer_scale:
    raise ValueError(
      f"{describe.WHERE}.modalities.image: layer_scale = {t.layer_scale} and mlp / "
      f"width = {t.mlp} / {t.width}: DINOv2 has scales, and keeps the ratio"
    )
  kind = "Dinov2WithRegisters" if image.registers else "Dinov2"
  said = dict(
    architectures=[f"{kind}Model"],
    model_type="dinov2_with_registers" if image.registers else "dinov2",
    dtype="float32",
    hidden_size=t.width,
    num_hidden_layers=t.depth,
    num_attention_heads=t.heads,
    mlp_ratio=int(ratio) if ratio == int(ratio) else ratio,
    hidden_act=hf.WRITTEN[t.activation],
    layer_norm_eps=t.epsilon,
    layerscale_value=t.layer_scale,
    image_size=image.size[0],
    patch_size=image.patch[0],
    num_channels=image.size[2],
  )
  return said | (dict(num_register_tokens=image.registers) if image.registers else {})


def _bert(state: Arrays, given: Mapping[str, Any]) -> ConfigDict:
  layer, words = "encoder.layer.", "embeddings.word_embeddings.weight"
  vocab, width = describe.shape(state, words, 2)
  length, _ = describe.shape(state, "embeddings.position_embeddings.weight", 2)
  mlp, _ = describe.shape(state, f"{layer}0.intermediate.dense.weight", 2)
  if given.get("model_type", "bert") != "bert":
    raise ValueError(
      f"config.json has model_type = {given['model_type']!r}, whose arrays have BERT's "
      "names and another meaning: only 'bert' is read"
    )
  said = given.get("position_embedding_type", "absolute")
  if said != "absolute" or given.get("is_decoder"):
    raise ValueError(
      f"config.json has position_embedding_type = {said!r} and is_decoder = "
      f"{given.get('is_decoder', False)}, expected 'absolute' and false"
    )
  trunk = _trunk(Said(given), width, describe.depth(state, layer), mlp, 1e-12)
  trunk |= dict(norm_after=True)
  pad = given.get("pad_token_id")
  text = dict(
    stem="tokens",
    vocab=vocab,
    length=length,
    pad=0 if pad is None else Said(given).whole("pad_token_id", 0, least=0),
    stem_norm=True,
    pool=given.get("pool", _USUAL),
  )
  return _one("bert", "text", width, trunk, text)


def _bert_rules(image: None, text: Modality) -> list[Rule]:
  del image
  theirs = "embeddings"

  def read(table: np.ndarray, types: np.ndarray) -> tuple[np.ndarray, ...]:
    return (table + types[0],)  # a text is of the first type in all of its tokens

  def write(position: np.ndarray) -> tuple[np.ndarray, ...]:
    return position, np.zeros((2, position.shape[1]), position.dtype)

  tables = (
    f"{theirs}.position_embeddings.weight",
    f"{theirs}.token_type_embeddings.weight",
  )
  out = [
    rules.one("towers/stem_text/embed/embedding", f"{theirs}.word_embeddings.weight"),
    Rule(("towers/stem_text/position",), tables, read, write),
    *rules.norm("towers/norm_text", f"{theirs}.LayerNorm"),
  ]
  for i in range(text.trunk.depth):
    ours, there = f"towers/trunk_text/block_{i:02d}", f"encoder.layer.{i}"
    out += _heads(ours, f"{there}.attention.self", text.trunk.heads)
    attended = f"{there}.attention.output.dense"
    out += rules.attended(f"{ours}/attention/out", attended, text.trunk.heads)
    out += rules.norm(f"{ours}/norm1", f"{there}.attention.output.LayerNorm")
    out += rules.linear(f"{ours}/mlp/up", f"{there}.intermediate.dense")
    out += rules.linear(f"{ours}/mlp/down", f"{there}.output.dense")
    out += rules.norm(f"{ours}/norm2", f"{there}.output.LayerNorm")
  return out


def _bert_card(image: None, text: Modality, embed_dim: int) -> dict[str, Any]:
  """Returns the config.json, of which the pooling of sentence encoders is no part."""
  del image, embed_dim
  t = text.trunk
  if text.pool not in _POOLS:
    raise ValueError(
      f"{describe.WHERE}.modalities.text.pool = {text.pool!r}, expected one of "
      f"{', '.join(_POOLS)}: sentence-transformers has no other"
    )
  if text.pad < 0:
    raise ValueError(
      f"{describe.WHERE}.modalities.text.pad = -1, expected an id: BERT has one"
    )
  return dict(
    architectures=["BertModel"],
    model_type="bert",
    dtype="float32",
    vocab_size=text.vocab,
    max_position_embeddings=text.length,
    type_vocab_size=2,
    hidden_size=t.width,
    intermediate_size=t.mlp,
    num_hidden_layers=t.depth,
    num_attention_heads=t.heads,
    hidden_act=hf.WRITTEN[t.activation],
    layer_norm_eps=t.epsilon,
    pad_token_id=text.pad,
  )


def pooling(text: Modality) -> dict[str, Any]:
  """Returns name -> JSON of a sentence encoder's pooling; {} if it is the usual one.

  As sentence-transformers wrote it up to version 5, which later ones read, too.
  """
  if text.pool == _USUAL:
    return {}
  said = {key: pool == text.pool for pool, key in _POOLS.items()}
  library = "sentence_transformers.models"
  modules = [
    dict(idx=i, name=str(i), path=path, type=f"{library}.{kind}")
    for i, (path, kind) in enumerate((("", "Transformer"), (_POOLING, "Pooling")))
  ]
  return {
    "modules.json": modules,
    f"{_POOLING}/config.json": dict(word_embedding_dimension=text.trunk.width, **said),
  }


def _unprefixed(state: Arrays) -> dict[str, np.ndarray]:
  """Returns the state without the name of the model inside of a larger one."""
  heads = ("bert.", "dinov2.", "dinov2_with_registers.")
  prefix = next((p for p in heads if any(k.startswith(p) for k in state)), "")
  return {k.removeprefix(prefix): x for k, x in state.items()}


DINOV2 = Format(
  "hf",
  "Dinov2Model",
  ("embeddings.cls_token", "encoder.layer.0.layer_scale1.lambda1"),
  _dino,
  _DINO_IMAGE,
  None,
  _dino_rules,
  _dino_card,
  _DINO_PIXELS,
  normal=_unprefixed,
  harmless=("embeddings.mask_token", "classifier."),
)
BERT = Format(
  "hf",
  "BertModel",
  ("embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight"),
  _bert,
  None,
  _BERT_TEXT,
  _bert_rules,
  _bert_card,
  {},
  normal=_unprefixed,
  harmless=("pooler.", "classifier.", "cls.", "qa_outputs."),
)
