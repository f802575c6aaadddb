"""Dropless dispatch: matmuls over tokens sorted by expert (arXiv 2211.15841).

Every choice is served, whatever the balance: there are no slots, so that capacity and
priority do not apply, and the result does not depend on the routing groups. Each device
sorts the choices of its own tokens and multiplies each expert's rows by its weights,
which are gathered over `fsdp` and stay split over `tensor`.

Over the mesh axis `expert` (n devices) all tokens of the n devices are gathered, each
device runs its own E / n experts, and the results are summed where the tokens came
from. A peer may send all of its tokens to one device, so a buffer that never drops must
hold n times the mean: that is the bound here, in rows and in bytes received, against
k * capacity of the all-to-all with slots. It pays while n is about k; beyond, split the
experts over `fsdp`, or accept slots.

Axis letters: g group, s tokens of a group, k choices, r rows, e experts, w width.
"""

from collections.abc import Callable
import functools

import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from model.layers import device
from model.moe import dispatch
from model.moe.config import WHERE
from model.moe.router import Chosen
from model.types import Array

P = PartitionSpec
Linear = tuple[Array, Array]  # kernel [e, i, o], bias [e, o]
NATIVE = ("TPU v5", "TPU v5p")  # chips with a ragged_dot that skips other experts


def apply(
  weights: tuple[Linear, Linear],
  activation: Callable[[Array], Array],
  x: Array,
  routes: Chosen,
  kernel: str = "auto",
) -> Array:
  """Applies to each token all experts that it chose, weighted by their gates.

  Args:
    weights: of the two layers of the experts, in the dtype of the matmuls.
    activation: between them.
    x: [g, s, w]; finite, padding too.
    routes: for g groups and k choices.
    kernel: `config.model.moe.dropless_kernel`.

  Returns:
    [g, s, w] in the dtype of x; exactly 0 for padding.

  Raises:
    ValueError: "auto" on a device without a fast grouped matmul.
  """
  axes = {name: size for name, size in dispatch.mesh_axes().items() if size > 1}
  if weights[0][0].shape[-1] % axes.get("tensor", 1):
    del axes["tensor"]  # the sharding rules replicate what does not divide, too
  platform, kind = device.ambient()
  local = functools.partial(
    _local,
    activation=activation,
    matmul=_matmul(choose(kernel, platform, kind), interpret=platform != "tpu"),
    axes=axes,
  )
  if not axes:
    return local(weights, x, routes.gate, routes.expert)
  home = P(tuple(name for name in dispatch.BATCH_AXES if name in axes) or None)
  expert, tensor = (name if name in axes else None for name in ("expert", "tensor"))
  up = P(expert, None, tensor), P(expert, tensor)
  down = P(expert, tensor, None), P(expert, None)
  # The kernel's outputs do not say over which axes they vary: nothing to check.
  run = jax.shard_map(
    local, in_specs=((up, down), home, home, home), out_specs=home, check_vma=False
  )
  return run(weights, x, routes.gate, routes.expert)


def choose(kernel: str, platform: str, kind: str) -> str:
  """Returns "megablox" or "ragged_dot": `kernel`, or what the device does well.

  Args:
    kernel: `config.model.moe.dropless_kernel`.
    platform: "cpu" | "gpu" | "tpu".
    kind: of the device, such as "TPU v5 lite".

  Raises:
    ValueError: "auto", and the device does neither well.
  """
  if kernel != "auto":
    return kernel
  if kind in NATIVE:
    return "ragged_dot"
  if platform == "tpu":
    return "megablox"
  raise ValueError(
    f"{WHERE}.dispatch = 'dropless' on {kind or platform}: jax.lax.ragged_dot computes "
    "every expert for every row there (experts / k times the arithmetic), and the "
    f"megablox kernel is interpreted. Set {WHERE}.dispatch = 'gather' with "
    f"{WHERE}.capacity and .capacity_eval = experts / k, which drops nothing either; "
    f"or, to test, {WHERE}.dropless_kernel = 'ragged_dot' or 'megablox'."
  )


def _matmul(kernel: str, *, interpret: bool) -> Callable[[Array, Array, Array], Array]:
  """Returns f(rows [r, i], kernel [e, i, o], sizes int32[e]) -> [r, o].

  The first sizes[0] rows are multiplied by kernel[0], and so on; what comes out of rows
  beyond the sum of the sizes is not defined.
  """
  if kernel == "ragged_dot":
    return jax.lax.ragged_dot
  # Experimental, and slow to import: only for those who use it.
  from jax.experimental.pallas.ops.tpu.megablox import gmm

  def megablox(rows: Array, kernel: Array, sizes: Array) -> Array:
    (r, i), (e, _, o) = rows.shape, kernel.shape
    # Large tiles for the matrix unit, unless most of one would be other experts' rows.
    tile = 512 if r >= 512 * e else 128
    padded = jnp.pad(rows, ((0, -r % tile), (0, 0)))
    tiling = (tile, *(min(1024, -(-n // 128) * 128) for n in (i, o)))
    out = gmm(padded, kernel, sizes, rows.dtype, tiling, None, None, False, interpret)
    return out[:r]

  return megablox


def _local(
  weights: tuple[Linear, Linear],
  x: Array,
  gate: Array,
  expert: Array,
  *,
  activation: Callable[[Array], Array],
  matmul: Callable[[Array, Array, Array], Array],
  axes: dict[str, int],
) -> Array:
  """One device's part: its tokens [g, s, w] and experts -> [g, s, w]."""
  (up, a), (down, b) = weights
  experts = up.shape[0]
  if "expert" in axes:
    gather = functools.partial(
      jax.lax.all_gather, axis_name="expert", axis=0, tiled=True
    )
    x, gate, expert = gather(x), gather(gate), gather(expert)
    expert = expert - experts * jax.lax.axis_index("expert")
    expert = jnp.where((expert >= 0) & (expert < experts), expert, experts)
  if "tensor" in axes:  # the bias of a sum over the axis is added once
    b = jnp.where(jax.lax.axis_index("tensor") == 0, b, jnp.zeros((), b.dtype))
  g, s, w = x.shape
  t, k = g * s, expert.shape[-1]
  slot, entry, own, sizes = sort(expert.reshape(t, k), experts)
  hot = jax.nn.one_hot(own, experts, dtype=x.dtype)  # none for a row without expert

  def linear(rows: Array, kernel: Array, bias: Array) -> Array:
    # The bias by a small matmul: the gradient of a gather would be a scatter.
    y = checkpoint_name(matmul(rows, kernel, sizes), dispatch.PRODUCT) + hot @ bias
    # A selection: rows without an expert may hold anything, forwards and backwards.
    return jnp.where(own[:, None] < experts, y, jnp.zeros((), y.dtype))

  # One queue of t * k slots: the gathers of the dispatch with slots do the moving.
  rows = dispatch.spread_rows(x.reshape(1, t, w), slot[None], entry[None, None])[0, 0]
  rows = linear(activation(linear(rows, up, a)), down, b)
  y = dispatch.combine_rows(
    rows[None, None], gate.reshape(1, t, k), slot[None], entry[None, None]
  )
  y = y.reshape(g, s, -1)
  if "tensor" in axes:
    y = jax.lax.psum(y, "tensor")
  if "expert" in axes:
    y = jax.lax.psum_scatter(y, "expert", scatter_dimension=0, tiled=True)
  return y


def sort(expert: Array, experts: int) -> tuple[Array, Array, Array, Array]:
  """Sorts the choices of t tokens by expert, and as they stand within one.

  Args:
    expert: int32[t, k]; `experts` for a choice that is nobody's.
    experts: e.

  Returns:
    slot int32[t, k], the row of each choice, t * k for nobody's; entry int32[t * k],
    the choice token * k + i in each row, t * k beyond the last; own int32[t * k], the
    expert of each row; and sizes int32[e].
  """
  t, k = expert.shape
  flat = expert.reshape(-1)
  choice = jnp.arange(t * k, dtype=jnp.int32)
  own, order = jax.lax.sort((flat, choice), num_keys=1, is_stable=True)
  rank = jnp.argsort(order).astype(jnp.int32).reshape(t, k)  # the inverse permutation
  slot = jnp.where(expert < experts, rank, t * k)
  entry = jnp.where(own < experts, order, t * k)
  sizes = jnp.sum(flat[:, None] == jnp.arange(experts)[None], axis=0, dtype=jnp.int32)
  return slot, entry, own, sizes
