"""Parameters of an unrolled trunk <-> those of a scanned one."""

import re
from typing import Any

import jax
import jax.numpy as jnp

from model.encoders.trunk import SCANNED, scan_name, scans
from model.types import Params

_BLOCK = "block_"


def stack_layers(params: Params) -> dict[str, Any]:
  """Returns the parameters of `config.model.scan = False` as those of True.

  Args:
    params: of Towers, of a trunk, or any tree that holds trunks: wherever `block_00`,
      `block_01`, ... stand side by side, they become `blocks`, with a leading axis, or
      `blocks` and `blocks_<ff>` if that is how `Trunk` scans them.
  """
  names = [name for name in params if name.startswith(_BLOCK)]
  names.sort(key=lambda name: (len(name), name))  # block_100 behind block_99
  new = {k: _inside(stack_layers, v) for k, v in params.items() if k not in names}
  if not names:
    return new
  for first, period, steps in scans(tuple(_form(params[name]) for name in names)):
    here = names[first : first + period * steps]
    new[scan_name(first)] = {
      here[j]: jax.tree.map(
        lambda *a: jnp.stack(a), *(params[n] for n in here[j::period])
      )
      for j in range(period)
    }
  return new


def unstack_layers(params: Params) -> dict[str, Any]:
  """Returns the parameters of `config.model.scan = True` as those of False."""
  scanned = [name for name in params if re.fullmatch(rf"{SCANNED}(_\d+)?", name)]
  new = {k: _inside(unstack_layers, v) for k, v in params.items() if k not in scanned}
  for stacked in (params[name] for name in scanned):
    names = sorted(stacked)
    first = int(names[0].removeprefix(_BLOCK))
    steps = jax.tree.leaves(stacked)[0].shape[0]
    for i in range(steps):
      for j, name in enumerate(names):
        layer = jax.tree.map(lambda a, i=i: a[i], stacked[name])
        new[f"{_BLOCK}{first + i * len(names) + j:02d}"] = layer
  return new


def _inside(convert, value):
  return convert(value) if isinstance(value, dict) else value


def _form(tree: Params) -> Any:
  # Blocks of one form can share a scan: the same names and shapes.
  leaves, structure = jax.tree.flatten(tree)
  return structure, tuple(a.shape for a in leaves)
