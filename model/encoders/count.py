"""Parameters and arithmetic of a model, from its config alone: nothing is computed."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

import jax

from model import catalogue
from model.encoders import config as configs
from model.encoders import towers
from model.encoders.config import Modality
from model.layers.pool import ONE
from model.moe.config import ROUTERS, MoeConfig
from model.moe.router import Gate

_EXPERTS = "moe/experts/"


@dataclasses.dataclass(frozen=True)
class ParameterTable:
  """Numbers of parameters.

  Attributes:
    total: all of them.
    active: those that work on a token, as papers count: all but the E - k of E experts
      that a token does not visit; the soft router's visits all. Tables of ids and
      positions count in full.
    parts: top-level module, such as "trunk" or "stem_text" -> its share of `total`.
  """

  total: int
  active: int
  parts: Mapping[str, int]


def parameter_table(model: Mapping[str, Any]) -> ParameterTable:
  """Counts the parameters of `config.model`, allocating none.

  Raises:
    ValueError: a config that `towers.build` refuses.
  """
  net = towers.build(model)
  moe = net.moe
  # Tracing deep sparse models takes long, and blocks of one kind are alike: trace one
  # dense block and one sparse one, and count them as often as they occur.
  two = tuple(
    dataclasses.replace(m, trunk=dataclasses.replace(m.trunk, depth=2))
    for m in net.modalities
  )
  sparse = dataclasses.replace(moe, every=0, layers=(1,)) if moe else None
  small = net.clone(modalities=two, moe=sparse, scan=False)
  shapes = jax.eval_shape(small.init, jax.random.key(0), configs.example(model))
  times = {}
  for m in net.modalities:
    count = len(moe.blocks(m.trunk.depth)) if moe else 0
    trunk = "trunk" if net.shared else f"trunk_{m.name}"
    times[f"{trunk}/block_00"] = m.trunk.depth - count
    times[f"{trunk}/block_01"] = count
  parts: dict[str, int] = {}
  idle = 0.0
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes["params"]):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    part, inside = name.split("/")[:2]
    size = math.prod(leaf.shape) * times.get(f"{part}/{inside}", 1)
    parts[part] = parts.get(part, 0) + size
    if _EXPERTS in name and moe:
      idle += size * (moe.experts - _router(moe).active(moe)) / moe.experts
  total = sum(parts.values())
  return ParameterTable(total, total - round(idle), parts)


def flops_per_example(
  model: Mapping[str, Any], *, capacity: bool = False, train: bool = True
) -> dict[str, float]:
  """Returns modality -> FLOPs of the matmuls of one forward pass of one whole example.

  A multiplication with its addition is 2. A training step costs 3 times as much, plus
  what is recomputed. Padding counts; norms, softmax and look-ups do not; a causal mask
  saves nothing. Of a modality with `pack`, training counts the slots that it packs
  into, and attention over its bins; of `drop_patches`, those that stay. Where one token
  is pooled, the last block counts as what it does for that one (see
  `model.encoders.trunk`).

  Args:
    model: `config.model`.
    capacity: count the experts' empty slots too; else the useful k MLPs a token (see
      `model.moe.router.Gate`).
    train: with the capacity of training and packed, or as evaluation does it.
  """
  moe = configs.sparse(model)
  modalities = configs.modalities(model)
  together = sum(_in_trunk(m, train)[0] for m in modalities)
  flops = {}
  for m in modalities:
    mlps = 1.0
    if moe:
      factor = moe.capacity if train else moe.capacity_eval
      own = _in_trunk(m, train)[0]
      example = together if model["shared_trunk"] else own
      mlps = _router(moe).mlps(moe, own, example, factor if capacity else None)
    flops[m.name] = _forward(m, moe, model["embed_dim"], mlps, train)
    if _reads_one(m, moe, model["scan"], train):
      n = _tokens(m, train)
      flops[m.name] -= _block(m, *_in_trunk(m, train)) - _block(m, 1, n)
      flops[m.name] -= 4 * m.trunk.width**2 - 4 * n * m.trunk.width**2
  return flops


def _reads_one(m: Modality, moe: MoeConfig | None, scan: bool, train: bool) -> bool:
  """Says whether the last block computes one token, if no other is asked for."""
  c = m.trunk
  noise = train and (c.dropout or c.drop_path or m.pack)
  last = moe is not None and c.depth - 1 in moe.blocks(c.depth)
  return m.pool in ONE and not (scan or noise or last)


def _block(m: Modality, n: int, keys: int) -> float:
  """Returns the FLOPs of a dense block for n tokens that each look at `keys`."""
  w = m.trunk.width
  return 4.0 * n * keys * w + 8 * n * w**2 + 4 * n * w * m.trunk.mlp


def attention_flops(m: Modality, train: bool = True) -> float:
  """Returns the FLOPs of one example's attention scores and sums in all blocks."""
  n, keys = _in_trunk(m, train)
  return 4.0 * m.trunk.depth * n * keys * m.trunk.width


def _in_trunk(m: Modality, train: bool) -> tuple[int, int]:
  """Returns tokens of an example in the trunk, and keys that each is compared with."""
  if train and m.pack:
    return m.pack.tokens, m.pack.rows * m.pack.tokens
  return _tokens(m, train), _tokens(m, train)


def _tokens(m: Modality, train: bool) -> int:
  """Returns the tokens of an example, of patches those that training does not drop."""
  if not (train and m.drop_patches):
    return m.tokens
  return max(1, round((1 - m.drop_patches) * (m.tokens - m.extra))) + m.extra


def _router(moe: MoeConfig) -> type[Gate]:
  return catalogue.find(ROUTERS, moe.router, "Router")


def _forward(
  m: Modality, moe: MoeConfig | None, d: int, mlps: float, train: bool
) -> float:
  n, w, hidden = _in_trunk(m, train)[0], m.trunk.width, m.trunk.mlp
  dense_mlp = 4 * n * w * hidden
  flops = m.trunk.depth * _block(m, *_in_trunk(m, train))
  if moe:
    router = 2 * n * w * moe.experts * _router(moe).matmuls(moe)
    flops += len(moe.blocks(m.trunk.depth)) * (router + (mlps - 1) * dense_mlp)
  n = _tokens(m, train)  # stem and pooling see examples as they are
  if m.stem != "tokens":
    values = math.prod(m.patch) * (m.size[-1] if m.stem == "patches" else m.vocab)
    flops += 2 * (n - m.extra) * values * w
  flops += 2 * m.described * d
  if m.pool == "map":  # one query: its own and the result's matmul, all keys and values
    flops += 4 * w**2 + 4 * n * w**2 + 4 * n * w + 4 * w * hidden
  return flops + 2 * w * d * m.project
