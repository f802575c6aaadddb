"""The gradients of attention; `tiles` says how."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

from model.layers.kernels.tiles import (
  LEFT,
  LINE,
  LOAD,
  ROW,
  SUM,
  D,
  along,
  barrier,
  begin_product,
  count,
  fetch,
  fetched,
  held,
  limit,
  line,
  origin,
  part,
  put,
  size,
  tile,
  visible,
  zero,
)


@gluon.jit
def _directions(y_ptr, by_y, n: gl.constexpr, stride: gl.constexpr):
  """How far the gradients of results point along these: f32[., 16] in shared memory.

  Waits for all but the last copies, `by_y` among them.
  """
  x = gl.allocate_shared_memory(gl.float32, [held(n) // 16, 16], LINE)
  column = gl.arange(0, D, gl.SliceLayout(0, LOAD))
  ys = ()
  for j in gl.static_range(count(n)):
    row = j * 64 + gl.arange(0, part(j, n), gl.SliceLayout(1, LOAD))
    at = y_ptr + row[:, None] * stride + column[None, :]
    ys = ys + (gl.load(at, mask=(row < n)[:, None], other=0.0),)  # noqa: RUF005
  barrier()  # or most of these loads would begin after the wait
  fetched(1)
  for j in gl.static_range(count(n)):
    d = tile(by_y, j * 64, part(j, n)).load(LOAD).to(gl.float32)
    line(x, j * 64, part(j, n)).store(gl.sum(d * ys[j].to(gl.float32), 1))
  return x


@gluon.jit
def _summed(x, n: gl.constexpr):
  """f32[64], the sum of rows in shared memory."""
  total = gl.zeros([D], gl.float32, gl.SliceLayout(0, LOAD))
  whole = gl.zeros([64, D], gl.float32, LOAD)
  for j in gl.static_range(count(n)):
    block = tile(x, j * 64, part(j, n)).load(LOAD).to(gl.float32)
    if part(j, n) == 64:
      whole += block
    else:
      total += gl.sum(block, 0)
  return total + gl.sum(whole, 0)


@gluon.jit
def _log(log_ptr, i, n: gl.constexpr):
  """f32[64] of the rows of block i as a left side."""
  token = gl.minimum(i * 64, held(n) - 64) + gl.arange(0, 64, ROW)
  return gl.load(log_ptr + token, mask=token < n, other=0.0)


@gluon.jit
def _by_queries(
  i, q, k, v, by_y, log, directions, length, by_ptr, n: gl.constexpr, h: gl.constexpr,
  factor: gl.constexpr, scale: gl.constexpr, causal: gl.constexpr,
  limited: gl.constexpr,
):  # fmt: skip
  """The gradient by the queries of block i; returns f32[64, 64], 0 in other rows."""
  row = gl.minimum(i * 64, held(n) - 64)
  token = row + gl.arange(0, 64, ROW)
  direction = line(directions, row, 64).load(ROW)
  q, by_y = tile(q, row, 64), tile(by_y, row, 64)
  by_q = hopper.warpgroup_mma_init(gl.zeros([64, D], gl.float32, SUM))
  s, by_weights = begin_product(q, k, 0, n), begin_product(by_y, v, 0, n)
  for j in gl.static_range(count(n)):
    if j + 1 < count(n):  # begins now, for weights take longer
      next_s, next_by = begin_product(q, k, j + 1, n), begin_product(by_y, v, j + 1, n)
    s, by_weights = hopper.warpgroup_mma_wait(
      2 * (j + 1 < count(n)) + (j > 0), deps=(s, by_weights)
    )
    level = gl.convert_layout(log, along(0, size(j, n)))
    weights = gl.exp2(s * factor - level[:, None])
    if causal or limited or (j + 1) * 64 > n:
      seen = visible(row, j, size(j, n), length, causal)
      weights = gl.where(seen, weights, 0.0)
    level = gl.convert_layout(direction, along(0, size(j, n)))
    by_logits = weights * (by_weights - level[:, None])
    by_logits = gl.convert_layout(by_logits.to(gl.bfloat16), LEFT)
    block = tile(k, j * 64, size(j, n))
    by_q = hopper.warpgroup_mma(by_logits, block, by_q, is_async=True)
    if j + 1 < count(n):
      s, by_weights = next_s, next_by
  by_q = hopper.warpgroup_mma_wait(0, deps=(by_q,)) * scale
  put(by_ptr, by_q, i, row, n, 3 * h * D)
  return gl.where(((token < n) & (token >= i * 64))[:, None], by_q, 0.0)


@gluon.jit
def _by_keys(
  j, q, k, v, by_y, log_ptr, directions, length, by_ptr, n: gl.constexpr,
  h: gl.constexpr, factor: gl.constexpr, scale: gl.constexpr, causal: gl.constexpr,
  limited: gl.constexpr,
):  # fmt: skip
  """The gradients by the keys and values of block j."""
  row = gl.minimum(j * 64, held(n) - 64)
  by_k = hopper.warpgroup_mma_init(gl.zeros([64, D], gl.float32, SUM))
  by_v = hopper.warpgroup_mma_init(gl.zeros([64, D], gl.float32, SUM))
  k, v = tile(k, row, 64), tile(v, row, 64)
  s, by_weights = begin_product(k, q, 0, n), begin_product(v, by_y, 0, n)
  for i in gl.static_range(count(n)):
    if i + 1 < count(n):
      next_s = begin_product(k, q, i + 1, n)
    token = i * 64 + gl.arange(0, size(i, n), along(1, size(i, n)))
    log = gl.load(log_ptr + zero() + token, mask=token < n, other=0.0)
    direction = line(directions, i * 64, size(i, n)).load(along(1, size(i, n)))
    s = hopper.warpgroup_mma_wait(1 + 2 * (i > 0) + (i + 1 < count(n)), deps=(s,))
    weights = gl.exp2(s * factor - log[None, :])
    if causal:
      key = (row + gl.arange(0, 64, along(0, size(i, n))))[:, None]
      weights = gl.where(key <= token[None, :], weights, 0.0)
    left = gl.convert_layout(weights.to(gl.bfloat16), LEFT)
    block = tile(by_y, i * 64, size(i, n))
    by_v = hopper.warpgroup_mma(left, block, by_v, is_async=True)
    by_weights = hopper.warpgroup_mma_wait(1 + (i + 1 < count(n)), deps=(by_weights,))
    by_logits = weights * (by_weights - direction[None, :])
    left = gl.convert_layout(by_logits.to(gl.bfloat16), LEFT)
    block = tile(q, i * 64, size(i, n))
    by_k = hopper.warpgroup_mma(left, block, by_k, is_async=True)
    if i + 1 < count(n):
      s, by_weights = next_s, begin_product(v, by_y, i + 1, n)
  by_k, by_v = hopper.warpgroup_mma_wait(0, deps=(by_k, by_v))
  by_k = by_k * scale
  if limited:
    seen = (row + gl.arange(0, 64, ROW) < length)[:, None]
    by_k = gl.where(seen, by_k, 0.0)
    by_v = gl.where(seen, by_v, 0.0)
  put(by_ptr + D, by_k, j, row, n, 3 * h * D)
  put(by_ptr + 2 * D, by_v, j, row, n, 3 * h * D)


@gluon.jit
def attention_backward(
  qkv_ptr, length_ptr, y_ptr, log_ptr, d_ptr, by_ptr, sums_ptr, n: gl.constexpr,
  h: gl.constexpr, factor: gl.constexpr, scale: gl.constexpr, causal: gl.constexpr,
  limited: gl.constexpr,
):  # fmt: skip
  """Writes the gradient by qkv, and its sums over tokens, f32[b, h, 3, 64].

  Those of keys are 0: what is added to all keys changes nothing. Those of values are
  the sums of d, as weights add up to one.
  """
  length = limit(length_ptr, n, h, limited)
  at = origin(n, h)
  qkv_ptr += 3 * at
  by_ptr += 3 * at
  log_ptr += gl.program_id(0) * n
  by_y = fetch(d_ptr + at, n, h * D)
  hopper.async_copy.commit_group()
  q = fetch(qkv_ptr, n, 3 * h * D)
  k = fetch(qkv_ptr + D, n, 3 * h * D)
  v = fetch(qkv_ptr + 2 * D, n, 3 * h * D)
  hopper.async_copy.commit_group()
  log = _log(log_ptr, 0, n)
  directions = _directions(y_ptr + at, by_y, n, h * D)
  sums_ptr += gl.program_id(0) * 3 * D
  column = gl.arange(0, D, gl.SliceLayout(0, LOAD))
  gl.store(sums_ptr + D + column, gl.zeros([D], gl.float32, gl.SliceLayout(0, LOAD)))
  gl.store(sums_ptr + 2 * D + column, _summed(by_y, n))
  fetched(0)
  q_sum = gl.zeros([64, D], gl.float32, SUM)
  i = 0
  while i < count(n):
    next_log = _log(log_ptr, i + 1, n)
    q_sum += _by_queries(
      i, q, k, v, by_y, log, directions, length, by_ptr,
      n, h, factor, scale, causal, limited,
    )  # fmt: skip
    log = next_log
    i += 1
  gl.store(sums_ptr + gl.arange(0, D, gl.SliceLayout(0, SUM)), gl.sum(q_sum, 0))
  j = 0
  while j < count(n):
    _by_keys(
      j, q, k, v, by_y, log_ptr, directions, length, by_ptr,
      n, h, factor, scale, causal, limited,
    )  # fmt: skip
    j += 1
