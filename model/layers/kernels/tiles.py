"""Attention over a few hundred tokens, all of which lie in a GPU's fast memory.

In Gluon, Triton's dialect that leaves layouts and waiting to us: products here go on
while weights are computed. For Hopper (sm_90), 4 warps of which take 64 rows at once.

Loops are `while`: jax_triton also runs the passes for Triton's other dialect, and these
wait for each product right in a `for`.

A program has one head of one example: h * n rows of 64. In shared memory they are made
up to blocks of 64, the last one of 16, 32 or 64, with zeros behind the n-th. The left
side of a product is 64 rows; where the last block has fewer, it begins before its own,
and only its own are stored. The right side is a block.

Weights are powers of two: `factor` is log2(e) / sqrt(64). Of qkv [b, n, h, 3, 64] a
program knows where its queries begin; keys and values are 64 and 128 behind them.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper

barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # of Triton 3.6

D = gl.constexpr(64)
TILE = gl.constexpr(gl.NVMMASharedLayout(128, 16))
LINE = gl.constexpr(gl.SwizzledSharedLayout(1, 1, 1, [0]))
LOAD = gl.constexpr(gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0]))
SUM = gl.constexpr(gl.NVMMADistributedLayout([3, 0], [4, 1], [16, 64, 16]))
LEFT = gl.constexpr(gl.DotOperandLayout(0, SUM, 2))
ROW = gl.constexpr(gl.SliceLayout(1, SUM))
# As SUM, but 8 neighbours a thread, which 4 of them exchange without shared memory.
ITEMS = [[0, 1], [0, 2], [0, 4], [0, 32], [8, 0]]
LANES = [[0, 8], [0, 16], [1, 0], [2, 0], [4, 0]]
WARPS = [[16, 0], [32, 0]]
STORE = gl.constexpr(gl.DistributedLinearLayout(ITEMS, LANES, WARPS, [], [64, 64]))


@gluon.constexpr_function
def count(n):
  """Returns how many blocks n rows are."""
  return (n + 63) // 64


@gluon.constexpr_function
def size(j, n):
  """Returns the rows of block j as a right side: 16, 32 or 64."""
  left, rows = n - j * 64, 16
  while rows < min(left, 64):
    rows *= 2
  return rows


@gluon.constexpr_function
def part(j, n):
  """Returns the rows of block j in shared memory."""
  return 64 if n < 64 else size(j, n)


@gluon.constexpr_function
def held(n):
  """Returns all rows in shared memory."""
  return (count(n) - 1) * 64 + part(count(n) - 1, n)


@gluon.constexpr_function
def scores(keys):
  """Returns the layout of f32[64, keys], a product."""
  return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, keys, 16])


@gluon.constexpr_function
def along(axis, keys):
  """Returns the layout of what goes with such a product, along one of its axes."""
  return gl.SliceLayout(1 - axis, scores(keys))


@gluon.jit
def zero():
  """0, unknown to LLVM, or all addresses of a loop would lie in registers."""
  return gl.inline_asm_elementwise("mov.b32 $0, 0;", "=r", [], gl.int32, False, 1)


@gluon.jit
def tile(x, row, size: gl.constexpr):
  """bf16[size, 64], rows from `row` on, a multiple of 16, of [held / 16, 16, 64]."""
  return x.index(row // 16 + zero())._reinterpret(gl.bfloat16, [size, D], TILE)


@gluon.jit
def line(x, row, size: gl.constexpr):
  """The same of f32[held / 16, 16]."""
  return x.index(row // 16 + zero())._reinterpret(gl.float32, [size], LINE)


@gluon.jit
def fetch(ptr, n: gl.constexpr, stride: gl.constexpr):
  """Begins to copy a head's rows to shared memory: bf16[held / 16, 16, 64]."""
  x = gl.allocate_shared_memory(gl.bfloat16, [held(n) // 16, 16, D], TILE)
  column = gl.arange(0, D, gl.SliceLayout(0, LOAD))
  for j in gl.static_range(count(n)):
    row = j * 64 + gl.arange(0, part(j, n), gl.SliceLayout(1, LOAD))
    at = ptr + row[:, None] * stride + column[None, :]
    real = (row < n)[:, None]
    hopper.async_copy.async_copy_global_to_shared(
      tile(x, j * 64, part(j, n)), at, mask=real
    )
  return x


@gluon.jit
def fetched(pending: gl.constexpr):
  """Waits for all copies, or all but the last group, for all threads and products."""
  gl.static_assert(pending < 2)
  if pending:  # which those passes would make 0 of a wait_group
    wait: gl.constexpr = "cp.async.wait_group 1;\nmov.b32 $0, 0;"
    gl.inline_asm_elementwise(wait, "=r", [], gl.int32, False, 1)
  else:
    hopper.async_copy.wait_group(0)
  hopper.fence_async_shared()
  barrier()


@gluon.jit
def put(ptr, x, i, row, n: gl.constexpr, stride: gl.constexpr):
  """Stores f32[64, 64], which begins with row `row`, to the rows of block i."""
  x = gl.convert_layout(x.to(gl.bfloat16), STORE)
  row = row + gl.arange(0, 64, gl.SliceLayout(1, STORE))
  column = gl.arange(0, D, gl.SliceLayout(0, STORE))
  own = (row < n) & (row >= i * 64)
  gl.store(ptr + row[:, None] * stride + column[None, :], x, mask=own[:, None])


@gluon.jit
def begin_product(a, x, j, n: gl.constexpr):
  """Begins f32[64, size(j, n)], a b^T of bf16[64, 64] and block j of x, b."""
  b = tile(x, j * 64, size(j, n)).permute((1, 0))
  unset = gl.zeros([64, size(j, n)], gl.float32, scores(size(j, n)))
  return hopper.warpgroup_mma(a, b, unset, use_acc=False, is_async=True)


@gluon.jit
def visible(row, j, keys: gl.constexpr, length, causal: gl.constexpr):
  """bool[64 or 1, keys]: whether queries from `row` on may see the keys of block j."""
  key = (j * 64 + gl.arange(0, keys, along(1, keys)))[None, :]
  if causal:
    return key <= (row + gl.arange(0, 64, along(0, keys)))[:, None]
  else:
    return key < length


@gluon.jit
def limit(length_ptr, n: gl.constexpr, h: gl.constexpr, limited: gl.constexpr):
  """How many keys the queries of a program's example may see."""
  if limited:
    return gl.load(length_ptr + gl.program_id(0) // h)
  else:
    return n


@gluon.jit
def origin(n: gl.constexpr, h: gl.constexpr):
  """Where a program's rows begin in what is like y [b, n, h, 64]."""
  program = gl.program_id(0)
  return (program // h).to(gl.int64) * (n * h * D) + (program % h) * D
