"""What a step must send at least, to set beside what its compiled program sends.

Any program with this mesh, this layout of the parameters and these dtypes: no slot of
an expert empty, no statistics, collectives by rings. Four lines, into which
`tools.hlo_collectives` fall by kind, mesh axes and shape:

  exchange   tokens to their experts and back, and the gradients of both
  weights    gathered over fsdp for the forward and again for the backward pass, and
             their gradients scattered
  gradients  summed over the axes along which a parameter is whole
  loss       embeddings gathered, and their gradients scattered
"""

from collections.abc import Iterable
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model.encoders import config as encoders
from model.types import BATCH_AXES
from sharding import rules
from tools.hlo_collectives import Collective
from training import setup as setup_lib

LINES = ("exchange", "weights", "gradients", "loss")
# Parameters that are cast before use, so that they and their gradients travel as such.
_CAST = re.compile(r"/(attention|mlp|experts|stem_\w+)/")
_PASSES = {"train": (4, 2), "eval": (2, 1)}  # exchanges a sparse layer, gathers


def lines(
  setup: setup_lib.Setup, found: Iterable[Collective], step: str
) -> list[dict[str, Any]]:
  """Returns [{"what", "sent", "least"}]: bytes that one device sends in a step.

  Args:
    setup: of the compiled step.
    found: its collectives; none between slices.
    step: "train" | "eval".
  """
  sent = dict.fromkeys(LINES, 0)
  for c in found:
    sent[line_of(c, setup.config.model.embed_dim)] += c.total
  least = dict(
    exchange=_exchange(setup, step), loss=_loss(setup, step), **_parameters(setup, step)
  )
  return [dict(what=n, sent=sent[n], least=round(least[n])) for n in LINES]


def line_of(c: Collective, embed_dim: int) -> str:
  """Returns the line, one of LINES, of a collective."""
  if c.kind == "all-to-all":
    return "exchange"
  rows = re.fullmatch(rf"f32\[(?:1,)*(\d+),{embed_dim}\]", c.shape)
  # A square that nobody vouches for is a projection's gradient.
  square = rows and int(rows[1]) == embed_dim
  if rows and ("shard_map" in c.source or not (c.source or square)):
    return "loss"
  return "weights" if c.axes == ("fsdp",) else "gradients"


def _exchange(setup: setup_lib.Setup, step: str) -> float:
  model, n = setup.config.model, setup.mesh.shape["expert"]
  moe = encoders.sparse(model)
  layers = len(moe.blocks(model.trunk.depth)) if moe else 0
  tokens = sum(m.tokens for m in encoders.modalities(model))
  here = setup.config.batch_size // _parts(setup, BATCH_AXES)
  one = here * tokens * model.moe.k * model.trunk.width * _size(model.dtype)
  return _PASSES[step][0] * layers * one * (n - 1) / n


def _parameters(setup: setup_lib.Setup, step: str) -> dict[str, float]:
  """Returns the least of "weights" and of "gradients"."""
  towers = setup.abstract_state().params["towers"]
  gathers = _PASSES[step][1]
  total = dict(weights=0.0, gradients=0.0)
  for path, x in jax.tree_util.tree_leaves_with_path(towers):
    name = "/" + rules.path_of(path) + "/"
    size = _size(setup.config.model.dtype if _CAST.search(name) else "float32")
    split = {a for part in x.sharding.spec if part for a in np.atleast_1d(part)}
    whole = [a for a in BATCH_AXES if a not in split]
    # On one device, but for the axis that is gathered before use.
    here = size * x.size / _parts(setup, tuple(split - {"fsdp"}))
    f = _parts(setup, tuple(split & {"fsdp"}))
    scattered = step == "train"
    total["weights"] += (gathers + scattered) * here * (f - 1) / f
    n = _parts(setup, tuple(whole))
    if step == "train":
      total["gradients"] += 2 * here / f * (n - 1) / n
  return total


def _loss(setup: setup_lib.Setup, step: str) -> float:
  """One side of a pair of modalities, in f32: what InfoNCE gathers of the batch."""
  if step == "eval":
    return 0.0
  n = _parts(setup, BATCH_AXES)
  one = setup.config.batch_size * setup.config.model.embed_dim * 4
  return 2 * one * (n - 1) / n


def _parts(setup: setup_lib.Setup, axes: tuple[str, ...]) -> int:
  return math.prod(setup.mesh.shape[a] for a in axes)


def _size(dtype: str) -> int:
  return jnp.dtype(dtype).itemsize
