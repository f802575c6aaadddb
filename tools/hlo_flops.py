"""How many FLOPs a compiled step does in products of matrices.

Pure: HLO text in, a number out. Loops count as often as they turn; the compiler's own
count has them turn once. The TPU compiler writes every product as a convolution, that
of a batch as one over space with dilation or padding: what falls into the padding is
not counted. The GPU compiler calls cuBLAS. Neither what the vector units do is counted,
nor kernels of Pallas, Triton and cuDNN.
"""

from collections.abc import Mapping
import functools
import math
import re

import numpy as np

from tools import hlo_text
from tools.hlo_text import Instruction, Module

_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"\bwindow=\{([^}]*)\}")
_GROUPS = re.compile(r"\b(feature|batch)_group_count=(\d+)")
_CONTRACTED = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_DEFAULTS = {"stride": "1", "pad": "0_0", "lhs_dilate": "1", "rhs_dilate": "1"}
_KERNEL = re.compile(
  'custom_call_target="(tpu_custom_call|triton_kernel_call|mosaic_gpu|__cudnn)'
)
_CUBLAS = 'custom_call_target="__cublas$'
_OF_CUBLAS = re.compile(r'"lhs_contracting_dimensions":\[([\d",]*)\]')
Scope = Mapping[str, Instruction]


def total(module: Module) -> int:
  """Returns the FLOPs of one chip in a step."""
  return sum(
    run.times * of(module, module.computations[run.computation], i)
    for run in hlo_text.runs(module)
    for i in module.computations[run.computation].values()
  )


def has_kernels(module: Module) -> bool:
  """Returns whether it calls kernels whose FLOPs the text does not tell."""
  every = (i for scope in module.computations.values() for i in scope.values())
  return any(i.opcode == "custom-call" and _KERNEL.search(i.rest) for i in every)


def of(module: Module, scope: Scope, i: Instruction) -> int:
  """Returns the FLOPs of an instruction, those inside a fusion included.

  Loops, calls and branches are 0: what they run is a run of its own.
  """
  if i.opcode == "convolution":
    return _convolution(scope, i)
  if i.opcode == "dot":
    return _dot(scope, i, _CONTRACTED)
  if i.opcode == "custom-call" and _CUBLAS in i.rest:
    return _dot(scope, i, _OF_CUBLAS)
  if i.opcode != "fusion":
    return 0
  inside = module.computations[i.called()["calls"][0]]
  return sum(of(module, inside, j) for j in inside.values())


def _dot(scope: Scope, i: Instruction, pattern: re.Pattern[str]) -> int:
  dims = scope[i.operands[0]].arrays[0].dims
  contracted = pattern.search(i.rest)
  axes = re.findall(r"\d+", contracted[1]) if contracted else []
  inner = math.prod(dims[int(axis)] for axis in axes)
  return 2 * inner * math.prod(i.arrays[0].dims)


def _convolution(scope: Scope, i: Instruction) -> int:
  labels = _LABELS.search(i.rest)
  assert labels, i.rest  # every convolution has them
  left, right, out = (
    dict(zip(names, array.dims, strict=True))
    for names, array in zip(
      labels.groups(),
      (*(scope[name].arrays[0] for name in i.operands[:2]), i.arrays[0]),
      strict=True,
    )
  )
  window = _window(i.rest)
  taps = 1
  for axis in sorted(label for label in out if label.isdigit()):
    taps *= _taps(
      left[axis],
      right[axis],
      out[axis],
      *(_at(window, key, int(axis)) for key in _DEFAULTS),
    )
  groups = {kind: int(n) for kind, n in _GROUPS.findall(i.rest)}
  # right["i"] is what one group of features reads already.
  return 2 * taps * (left["b"] // groups.get("batch", 1)) * right["i"] * out["f"]


def _window(text: str) -> dict[str, list[str]]:
  """Returns e.g. {"size": ["1", "8"], "pad": ["0_0", "7_7"]}."""
  found = _WINDOW.search(text)
  parts = (part.split("=") for part in found[1].split()) if found else ()
  return {key: value.split("x") for key, value in parts}


def _at(window: Mapping[str, list[str]], key: str, axis: int) -> str:
  return window[key][axis] if key in window else _DEFAULTS[key]


@functools.cache
def _taps(
  size: int,
  kernel: int,
  out: int,
  stride: str,
  pad: str,
  lhs_dilate: str,
  rhs_dilate: str,
) -> int:
  """Returns how many (place of the result, place of the kernel) meet an element."""
  place = np.arange(out)[:, None] * int(stride) - int(pad.split("_")[0])
  place = place + np.arange(kernel) * int(rhs_dilate)
  real = (place >= 0) & (place <= (size - 1) * int(lhs_dilate))
  return int(np.sum(real & (place % int(lhs_dilate) == 0)))
