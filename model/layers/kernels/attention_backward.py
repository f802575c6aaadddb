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
  fetched(1)
  for j in gl.static_range(count(n)):
    d = tile(by_y, j * 64, part(j, n)).load(LOAD).to(gl.float32)
    line(x, j * 64, part(j, n)).store(gl.sum(d * ys[j].to(gl.float32), 1))
  return x


@gluon.jit
def _summed(x, n: gl.constexpr):
  """f32[64], the sum of rows in shared memory."""
  total = gl.zeros([D], gl.float32, gl.SliceLayout(0, LOAD))
  for j in gl.static_range(count(n)):
    total += gl.sum(tile(x, j * 64, part(j, n)).load(LOAD).to(gl.float32), 0)
  return total


@gluon.jit
def _by_queries_of(
  by_q,
  j,
  keys: gl.constexpr,
  masked: gl.constexpr,
  q,
  by_y,
  log,
  direction,
  k,
  v,
  row,
  length,
  factor: gl.constexpr,
  causal: gl.constexpr,
):
  """Begins to add what the keys of block j say to the gradient by 64 queries."""
  block = tile(k, j * 64, keys)
  s = begin_product(q, block, keys)
  by_weights = begin_product(by_y, tile(v, j * 64, keys), keys)
  s = hopper.warpgroup_mma_wait(1, deps=(s,))
  weights = gl.exp2(s * factor - gl.convert_layout(log, along(0, keys))[:, None])
  if masked:
    weights = gl.where(visible(row, j, keys, length, causal), weights, 0.0)
  by_weights = hopper.warpgroup_mma_wait(0, deps=(by_weights,))
  direction = gl.convert_layout(direction, along(0, keys))
  by_logits = weights * (by_weights - direction[:, None])
  by_logits = gl.convert_layout(by_logits.to(gl.bfloat16), LEFT)
  return hopper.warpgroup_mma(by_logits, block, by_q, is_async=True)


@gluon.jit
def _by_queries(
  i,
  q,
  k,
  v,
  by_y,
  log_ptr,
  directions,
  length,
  by_ptr,
  n: gl.constexpr,
  h: gl.constexpr,
  factor: gl.constexpr,
  scale: gl.constexpr,
  causal: gl.constexpr,
  limited: gl.constexpr,
):
  """The gradient by the queries of block i; returns f32[64, 64], 0 in other rows."""
  row = gl.minimum(i * 64, held(n) - 64)
  token = row + gl.arange(0, 64, ROW)
  log = gl.load(log_ptr + token, mask=token < n, other=0.0)
  direction = line(directions, row, 64).load(ROW)
  last: gl.constexpr = count(n) - 1
  by_q = hopper.warpgroup_mma_init(gl.zeros([64, D], gl.float32, SUM))
  for j in range(last):
    by_q = _by_queries_of(
      by_q, j, 64, causal or limited, tile(q, row, 64), tile(by_y, row, 64), log,
      direction, k, v, row, length, factor, causal,
    )  # fmt: skip
  by_q = _by_queries_of(
    by_q, last, size(last, n), causal or limited or n % 64 > 0, tile(q, row, 64),
    tile(by_y, row, 64), log, direction, k, v, row, length, factor, causal,
  )  # fmt: skip
  by_q = hopper.warpgroup_mma_wait(0, deps=(by_q,)) * scale
  put(by_ptr, by_q, i, row, n, 3 * h * D)
  return gl.where(((token < n) & (token >= i * 64))[:, None], by_q, 0.0)


@gluon.jit
def _by_keys_of(
  by_k,
  by_v,
  i,
  queries: gl.constexpr,
  k,
  v,
  q,
  by_y,
  log_ptr,
  directions,
  row,
  n: gl.constexpr,
  factor: gl.constexpr,
  causal: gl.constexpr,
):
  """Begins to add what comes from the queries of block i to gradients by 64 keys.

  All is turned, [keys, queries], so that no weights are turned for their products.
  """
  block, d = tile(q, i * 64, queries), tile(by_y, i * 64, queries)
  s = begin_product(k, block, queries)
  by_weights = begin_product(v, d, queries)
  token = i * 64 + gl.arange(0, queries, along(1, queries))
  log = gl.load(log_ptr + token, mask=token < n, other=0.0)
  s = hopper.warpgroup_mma_wait(1, deps=(s,))
  weights = gl.exp2(s * factor - log[None, :])
  if causal:
    key = (row + gl.arange(0, 64, along(0, queries)))[:, None]
    weights = gl.where(key <= token[None, :], weights, 0.0)
  by_v = hopper.warpgroup_mma(
    gl.convert_layout(weights.to(gl.bfloat16), LEFT), d, by_v, is_async=True
  )
  direction = line(directions, i * 64, queries).load(along(1, queries))
  by_weights = hopper.warpgroup_mma_wait(1, deps=(by_weights,))
  by_logits = weights * (by_weights - direction[None, :])
  by_k = hopper.warpgroup_mma(
    gl.convert_layout(by_logits.to(gl.bfloat16), LEFT), block, by_k, is_async=True
  )
  return by_k, by_v


@gluon.jit
def _by_keys(
  j,
  q,
  k,
  v,
  by_y,
  log_ptr,
  directions,
  length,
  by_ptr,
  n: gl.constexpr,
  h: gl.constexpr,
  factor: gl.constexpr,
  scale: gl.constexpr,
  causal: gl.constexpr,
  limited: gl.constexpr,
):
  """The gradients by the keys and values of block j."""
  row = gl.minimum(j * 64, held(n) - 64)
  by_k = hopper.warpgroup_mma_init(gl.zeros([64, D], gl.float32, SUM))
  by_v = hopper.warpgroup_mma_init(gl.zeros([64, D], gl.float32, SUM))
  last: gl.constexpr = count(n) - 1
  for i in range(last):
    by_k, by_v = _by_keys_of(
      by_k, by_v, i, 64, tile(k, row, 64), tile(v, row, 64), q, by_y, log_ptr,
      directions, row, n, factor, causal,
    )  # fmt: skip
  by_k, by_v = _by_keys_of(
    by_k, by_v, last, size(last, n), tile(k, row, 64), tile(v, row, 64), q, by_y,
    log_ptr, directions, row, n, factor, causal,
  )  # fmt: skip
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
  qkv_ptr,
  length_ptr,
  y_ptr,
  log_ptr,
  d_ptr,
  by_ptr,
  sums_ptr,
  n: gl.constexpr,
  h: gl.constexpr,
  factor: gl.constexpr,
  scale: gl.constexpr,
  causal: gl.constexpr,
  limited: gl.constexpr,
):
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
  directions = _directions(y_ptr + at, by_y, n, h * D)
  fetched(0)
  q_sum = gl.zeros([64, D], gl.float32, SUM)
  for i in range(count(n)):
    q_sum += _by_queries(
      i, q, k, v, by_y, log_ptr, directions, length, by_ptr,
      n, h, factor, scale, causal, limited,
    )  # fmt: skip
  for j in range(count(n)):
    _by_keys(
      j, q, k, v, by_y, log_ptr, directions, length, by_ptr,
      n, h, factor, scale, causal, limited,
    )  # fmt: skip
  sums_ptr += gl.program_id(0) * 3 * D
  column = gl.arange(0, D, gl.SliceLayout(0, LOAD))
  gl.store(sums_ptr + gl.arange(0, D, gl.SliceLayout(0, SUM)), gl.sum(q_sum, 0))
  gl.store(sums_ptr + D + column, gl.zeros([D], gl.float32, gl.SliceLayout(0, LOAD)))
  gl.store(sums_ptr + 2 * D + column, _summed(by_y, n))
