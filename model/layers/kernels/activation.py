"""The gradient of an activation, and its sum over tokens, in one pass."""

import triton
import triton.language as tl


@triton.jit
def _slope(x, kind: tl.constexpr):
  if kind == "gelu":
    normal = 0.3989422804014327 * tl.math.exp2(-0.7213475204444817 * x * x)
    return 0.5 + 0.5 * tl.math.erf(0.7071067811865476 * x) + x * normal
  else:
    # x sigmoid(u); `inner` is the derivative of u.
    if kind == "gelu_tanh":
      u = 1.5957691216057308 * x * (1 + 0.044715 * x * x)
      inner = 1.5957691216057308 * (1 + 0.134145 * x * x)
    else:
      tl.static_assert(kind == "quick_gelu")
      u = 1.702 * x
      inner = 1.702
    s = 1 / (1 + tl.math.exp2(-1.4426950408889634 * u))
    return s + x * s * (1 - s) * inner


@triton.jit
def activation_backward(
  x_ptr,
  d_ptr,
  by_x_ptr,
  sums_ptr,
  t: tl.constexpr,
  w: tl.constexpr,
  columns: tl.constexpr,
  rows: tl.constexpr,
  step: tl.constexpr,
  kind: tl.constexpr,
):
  """Writes the gradient by x [t, w], and its sum over `rows` rows: [t / rows, w]."""
  column = tl.program_id(0) * columns + tl.arange(0, columns)
  total = tl.zeros([step, columns], tl.float32)
  for first in tl.range(0, rows, step, num_stages=3):
    row = tl.program_id(1) * rows + first + tl.arange(0, step)
    at = row.to(tl.int64)[:, None] * w + column[None, :]
    real = (row < t)[:, None] & (column < w)[None, :]
    x = tl.load(x_ptr + at, mask=real, other=0.0).to(tl.float32)
    d = tl.load(d_ptr + at, mask=real, other=0.0).to(tl.float32)
    by_x = d * _slope(x, kind)
    total += by_x
    tl.store(by_x_ptr + at, by_x.to(by_x_ptr.dtype.element_ty), mask=real)
  at = tl.program_id(1) * w + column
  tl.store(sums_ptr + at, tl.sum(total, 0), mask=column < w)
