"""A residual sum and its layer norm in one pass, and their gradients in another.

Rows of [t, w], t constexpr; a program has every g-th of them. Numbers are f32 within.
"""

import triton
import triton.language as tl


@triton.jit
def norm_forward(
  x_ptr,
  z_ptr,
  scale_ptr,
  bias_ptr,
  y_ptr,
  normed_ptr,
  t: tl.constexpr,
  w: tl.constexpr,
  block: tl.constexpr,
  g: tl.constexpr,
  epsilon: tl.constexpr,
  add: tl.constexpr,
):
  """Writes y = x + z, rounded as x is, and its norm; without `add` the norm of x."""
  column = tl.arange(0, block)
  real = column < w
  scale = tl.load(scale_ptr + column, mask=real, other=0.0)
  bias = tl.load(bias_ptr + column, mask=real, other=0.0)
  for row in tl.range(tl.program_id(0), t, g, num_stages=3):
    at = row.to(tl.int64) * w + column
    y = tl.load(x_ptr + at, mask=real, other=0.0)
    if add:
      z = tl.load(z_ptr + at, mask=real, other=0.0)
      y = (y.to(tl.float32) + z.to(tl.float32)).to(y.dtype)
      tl.store(y_ptr + at, y, mask=real)
    centred = y.to(tl.float32)
    centred = tl.where(real, centred - tl.sum(centred, 0) / w, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, 0) / w + epsilon)
    normed = centred * inverse * scale + bias
    tl.store(normed_ptr + at, normed.to(y.dtype), mask=real)


@triton.jit
def norm_backward(
  y_ptr,
  d_ptr,
  more_ptr,
  scale_ptr,
  by_y_ptr,
  sums_ptr,
  t: tl.constexpr,
  w: tl.constexpr,
  block: tl.constexpr,
  g: tl.constexpr,
  epsilon: tl.constexpr,
  add: tl.constexpr,
):
  """Writes the gradient by y, `more` added to it, and sums over a program's rows.

  The sums [g, 3, w] are the gradients by scale and bias, and that by y itself: it is
  also that of a bias which was added to z.
  """
  column = tl.arange(0, block)
  real = column < w
  scale = tl.load(scale_ptr + column, mask=real, other=0.0)
  by_scale = tl.zeros([block], tl.float32)
  by_bias = tl.zeros([block], tl.float32)
  sums = tl.zeros([block], tl.float32)
  for row in tl.range(tl.program_id(0), t, g, num_stages=3):
    at = row.to(tl.int64) * w + column
    y = tl.load(y_ptr + at, mask=real, other=0.0).to(tl.float32)
    d = tl.load(d_ptr + at, mask=real, other=0.0).to(tl.float32)
    y = tl.where(real, y - tl.sum(y, 0) / w, 0.0)
    inverse = tl.rsqrt(tl.sum(y * y, 0) / w + epsilon)
    y = y * inverse
    by_scale += d * y
    by_bias += d
    d = d * scale
    by_y = inverse * (d - tl.sum(d, 0) / w - y * (tl.sum(d * y, 0) / w))
    if add:
      by_y += tl.load(more_ptr + at, mask=real, other=0.0).to(tl.float32)
    sums += tl.where(real, by_y, 0.0)
    tl.store(by_y_ptr + at, by_y.to(by_y_ptr.dtype.element_ty), mask=real)
  sums_ptr += tl.program_id(0) * 3 * w + column
  tl.store(sums_ptr, by_scale, mask=real)
  tl.store(sums_ptr + w, by_bias, mask=real)
  tl.store(sums_ptr + 2 * w, sums, mask=real)
