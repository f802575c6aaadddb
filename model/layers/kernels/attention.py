"""Attention, forward; `tiles` says how."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from model.layers.kernels.tiles import (
  LEFT,
  ROW,
  SUM,
  D,
  along,
  begin_product,
  count,
  fetch,
  fetched,
  held,
  limit,
  origin,
  put,
  size,
  tile,
  visible,
)


@gluon.jit
def _attend(
  i, q, k, v, length, y_ptr, log_ptr, n: gl.constexpr, h: gl.constexpr,
  factor: gl.constexpr, causal: gl.constexpr, limited: gl.constexpr,
):  # fmt: skip
  """What the queries of block i see."""
  row = gl.minimum(i * 64, held(n) - 64)
  started = ()
  for j in gl.static_range(count(n)):
    started = started + (begin_product(tile(q, row, 64), k, j, n),)  # noqa: RUF005
  logits = ()
  top = gl.full([64], -1e30, gl.float32, ROW)
  for j in gl.static_range(count(n)):
    s = hopper.warpgroup_mma_wait(count(n) - 1 - j, deps=(started[j],))
    if causal or limited or (j + 1) * 64 > n:
      s = gl.where(visible(row, j, size(j, n), length, causal), s, -1e30)
    top = gl.maximum(top, gl.convert_layout(gl.max(s, 1), ROW))
    logits = logits + (s,)  # noqa: RUF005
  if i == 0:
    fetched(0)  # the values
  top = top * factor
  total = gl.zeros([64], gl.float32, ROW)
  y = hopper.warpgroup_mma_init(gl.zeros([64, D], gl.float32, SUM))
  for j in gl.static_range(count(n)):
    level = gl.convert_layout(top, along(0, size(j, n)))
    weights = gl.exp2(logits[j] * factor - level[:, None])
    total += gl.convert_layout(gl.sum(weights, 1), ROW)
    weights = gl.convert_layout(weights.to(gl.bfloat16), LEFT)
    block = tile(v, j * 64, size(j, n))
    y = hopper.warpgroup_mma(weights, block, y, is_async=True)
  y = hopper.warpgroup_mma_wait(0, deps=(y,))
  put(y_ptr, y * (1.0 / total)[:, None], i, row, n, h * D)
  token = row + gl.arange(0, 64, ROW)
  own = (token < n) & (token >= i * 64)
  gl.store(log_ptr + token, top + gl.log2(total), mask=own)


@gluon.jit
def attention_forward(
  qkv_ptr, length_ptr, y_ptr, log_ptr, n: gl.constexpr, h: gl.constexpr,
  factor: gl.constexpr, causal: gl.constexpr, limited: gl.constexpr,
):  # fmt: skip
  """Writes y [b, n, h, 64] and the logarithms of the sums of weights, f32[b, h, n]."""
  length = limit(length_ptr, n, h, limited)
  at = origin(n, h)
  qkv_ptr += 3 * at
  y_ptr += at
  log_ptr += gl.program_id(0) * n
  q = fetch(qkv_ptr, n, 3 * h * D)
  k = fetch(qkv_ptr + D, n, 3 * h * D)
  hopper.async_copy.commit_group()
  v = fetch(qkv_ptr + 2 * D, n, 3 * h * D)
  hopper.async_copy.commit_group()
  fetched(1)
  i = 0
  while i < count(n):
    _attend(i, q, k, v, length, y_ptr, log_ptr, n, h, factor, causal, limited)
    i += 1
