"""Calls of the kernels on the arrays of one device; requirements-gpu.txt runs them."""

import importlib
import math
import re
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from model.layers import device
from model.types import Array

# Programs of a loop over rows: 8 beside each other on each of Hopper's multiprocessors.
PROGRAMS = 132 * 8
ROWS, COLUMNS, STEP = 256, 512, 8  # of what one program of an activation has, and reads


def _triton(kernels: str) -> tuple[ModuleType, ModuleType]:
  try:
    # Only now: both exist for machines with a GPU, and take seconds to import.
    call = importlib.import_module("jax_triton")
    return call, importlib.import_module(f"model.layers.kernels.{kernels}")
  except ImportError as e:
    raise ModuleNotFoundError(
      "config.model.trunk.attention = 'triton' needs what requirements-gpu.txt lists "
      f"({e}); 'cudnn' does without it on a GPU, 'xla' anywhere"
    ) from e


def hopper() -> bool:
  """Says whether the devices have the instructions that attention is written in."""
  first, kind = jax.devices()[0], device.ambient()[1]
  if kind == first.device_kind:
    return getattr(first, "compute_capability", "") == "9.0"
  return bool(re.search(r"\bG?H[12]00\b", kind))  # described: compiled for, not run on


def _like(x: Array) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _f32(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _heads(qkv: Array, lengths: Array | None, causal: bool) -> dict[str, Any]:
  _, n, h, _, d = qkv.shape
  limited = lengths is not None and not causal
  factor = math.log2(math.e) / math.sqrt(d)
  sizes = dict(n=n, h=h, factor=factor, causal=causal, limited=limited)
  return sizes | dict(num_warps=4, num_stages=1)


def _some(lengths: Array | None) -> Array:
  return jnp.zeros(1, jnp.int32) if lengths is None else lengths


def attend(qkv: Array, lengths: Array | None, causal: bool) -> tuple[Array, Array]:
  """Returns softmax(q k / sqrt(d)) v and the logarithms of the sums of weights.

  Args:
    qkv: bf16 [b, n, h, 3, 64].
    lengths: int32[b], how many keys count, at least 1; None: all. Unheeded if causal.
    causal: query i sees keys 0 to i only.

  Returns:
    [b, n, h, d]; to the base of two, f32[b, h, n].
  """
  triton, kernels = _triton("attention")
  b, n, h, _, d = qkv.shape
  return triton.triton_call(
    *(qkv, _some(lengths)),
    kernel=kernels.attention_forward,
    out_type=(jax.ShapeDtypeStruct((b, n, h, d), qkv.dtype), _f32(b, h, n)),
    grid=(b * h,),
    **_heads(qkv, lengths, causal),
  )


def attend_backward(
  qkv: Array, lengths: Array | None, y: Array, log: Array, d: Array, causal: bool
) -> tuple[Array, Array]:
  """Returns the gradient by qkv, and its sums over tokens, f32[b, h, 3, d].

  Args:
    qkv: as given to `attend`, with lengths.
    lengths: or None.
    y: what `attend` returned, with log.
    log: f32[b, h, n].
    d: the gradient by y, [b, n, h, d].
    causal: as given to `attend`.
  """
  triton, kernels = _triton("attention_backward")
  b, _, h, _, depth = qkv.shape
  return triton.triton_call(
    *(qkv, _some(lengths), y, log, d),
    kernel=kernels.attention_backward,
    out_type=(_like(qkv), _f32(b, h, 3, depth)),
    grid=(b * h,),
    scale=1 / math.sqrt(depth),
    **_heads(qkv, lengths, causal),
  )


def _norm_options(x: Array, epsilon: float, add: bool) -> dict[str, Any]:
  w = x.shape[-1]
  t, block = x.size // w, 1 << (w - 1).bit_length()
  g = min(t, PROGRAMS)
  sizes = dict(t=t, w=w, block=block, g=g, epsilon=epsilon, add=add)
  return sizes | dict(grid=(g,), num_warps=max(1, min(block // 1024, 16)))


def add_norm(
  x: Array, z: Array | None, scale: Array, bias: Array, epsilon: float
) -> tuple[Array, Array]:
  """Returns y = x + z and its layer norm, like x; without z, x and its norm.

  Args:
    x: [..., w], as z.
    z: or None.
    scale: f32[w], as bias.
    bias: is added to the norm.
    epsilon: is added to the variance.
  """
  triton, kernels = _triton("norm")
  y, normed = triton.triton_call(
    *(x, x if z is None else z, scale, bias),
    kernel=kernels.norm_forward,
    # Nothing is written to y where there is nothing to add.
    out_type=(_like(x) if z is not None else _like(scale), _like(x)),
    **_norm_options(x, epsilon, z is not None),
  )
  return (x if z is None else y), normed


def add_norm_backward(
  y: Array, d: Array, more: Array | None, scale: Array, epsilon: float
) -> tuple[Array, Array]:
  """Returns the gradient by y [..., w], and sums f32[g, 3, w] that are to be added up.

  They are over rows: the gradients by scale, by bias, and by y.

  Args:
    y: [..., w], what `add_norm` returned.
    d: the gradient by its norm.
    more: what else is added to the gradient by y, or None.
    scale: f32[w].
    epsilon: as given to `add_norm`.
  """
  triton, kernels = _triton("norm")
  options = _norm_options(y, epsilon, more is not None)
  return triton.triton_call(
    *(y, d, d if more is None else more, scale),
    kernel=kernels.norm_backward,
    out_type=(_like(y), _f32(options["g"], 3, y.shape[-1])),
    **options,
  )


def activate_backward(x: Array, d: Array, kind: str) -> tuple[Array, Array]:
  """Returns the gradient by x [..., w], and sums over rows, f32[g, w], to be added up.

  Args:
    x: [..., w], of which there was an activation.
    d: the gradient by that.
    kind: "gelu_tanh" | "gelu" | "quick_gelu".
  """
  triton, kernels = _triton("activation")
  w = x.shape[-1]
  t = x.size // w
  groups = -(-t // ROWS)
  return triton.triton_call(
    *(x, d),
    kernel=kernels.activation_backward,
    out_type=(_like(x), _f32(groups, w)),
    grid=(-(-w // COLUMNS), groups),
    num_warps=4,
    **dict(t=t, w=w, columns=COLUMNS, rows=ROWS, step=STEP, kind=kind),
  )
