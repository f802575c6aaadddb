"""Reductions over pairs: against numpy loops, across strategies and meshes, memory."""

import functools
import re

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from model.losses import reduce
from model.losses.siglip import pair_loss
from model.types import MESH_AXES

B, D = 40, 16
SHAPES = {
  "none": None,
  "one": (1, 1, 1, 1),
  "data8": (8, 1, 1, 1),
  "split": (2, 2, 2, 1),
  "tensor": (2, 1, 2, 2),
}


def mesh_of(shape):
  devices = jax.devices()[: int(np.prod(shape))]
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  return jax.make_mesh(shape, MESH_AXES, axis_types=auto, devices=devices)


def unit(x):
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def make(b=B, b2=None, d=D, seed=0):
  rng = np.random.default_rng(seed)
  a = rng.normal(size=(b, d))
  other = rng.normal(size=(b2 or b, d))
  other[: min(b, b2 or b)] += 1.5 * a[: b2 or b]
  return unit(a), unit(other)


VALID = np.arange(B) % 5 != 0
WEIGHT = np.random.default_rng(3).normal(size=B).astype(np.float32)
THIRDS = np.arange(B, dtype=np.int32) // 3
GIVEN = make(d=5, seed=4)


def weigh(s, alike, t):
  """Two sums at once, with a second score."""
  return jnp.exp(t) * jnp.where(alike, s, jnp.square(s)), alike.astype(jnp.float32)


def objective(a, c, scale, bias, *, strategy, tile=7):
  """Every reduction at once, each row with a weight of its own."""
  how = dict(strategy=strategy, tile=tile, bias=bias)
  valid = jnp.asarray(VALID)
  rows, cols = reduce.symmetric_logsumexp(a, c, scale, valid=valid, **how)
  others = reduce.row_logsumexp(a, c, scale, valid=valid, exclude="diagonal", **how)
  pairs = reduce.pair_sum(pair_loss, a, c, scale, valid=valid, **how)
  first = jnp.sum(
    WEIGHT * (rows + 2 * others) + WEIGHT**2 * cols + 0.1 * WEIGHT * pairs
  )
  near, far = reduce.symmetric_logsumexp(a, c, scale, only=(THIRDS, THIRDS), **how)
  soft, count = reduce.pair_sum(
    weigh, a, c, scale, valid=valid, positive=(THIRDS, THIRDS), given=GIVEN, **how
  )
  return first + jnp.sum(WEIGHT * (near - 0.1 * soft) + WEIGHT**2 * (far + count))


@functools.cache
def result(strategy, shape):
  f = jax.jit(
    jax.value_and_grad(
      functools.partial(objective, strategy=strategy), argnums=(0, 1, 2, 3)
    )
  )
  if shape is None:
    return jax.device_get(f(*make(), 14.0, -1.0))
  with jax.set_mesh(mesh_of(shape)):
    split = jax.NamedSharding(mesh_of(shape), P(MESH_AXES[:3]))
    a, c = (jax.device_put(x, split) for x in make())
    return jax.device_get(f(a, c, 14.0, -1.0))


def assert_near(got, want, tolerance=3e-6):
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    assert np.max(np.abs(x - y)) <= tolerance * max(np.max(np.abs(y)), 1e-3)


def loop(a, c, scale, bias, valid, exclude):
  """log sum_j exp s_ij, in f64, one pair at a time."""
  out = np.full(len(a), -np.inf)
  for i, x in enumerate(a.astype(np.float64)):
    for j, y in enumerate(c.astype(np.float64)):
      if valid[j] and not (exclude and i == j):
        out[i] = np.logaddexp(out[i], scale * (x @ y) + bias)
  return out


@pytest.mark.parametrize("strategy", ["dense", "tiled"])
@pytest.mark.parametrize("exclude", [None, "diagonal"])
def test_logsumexp_is_a_double_loop(strategy, exclude):
  a, c = make(13, 19)
  valid = np.arange(19) % 3 != 1
  rows = np.arange(13) % 4 != 2
  how = dict(exclude=exclude, strategy=strategy, bias=0.5, tile=6)
  got = reduce.row_logsumexp(a, c, 30.0, valid=jnp.asarray(valid), **how)
  want = loop(a, c, 30.0, 0.5, valid, exclude)
  np.testing.assert_allclose(got, want, rtol=2e-6)
  both = reduce.symmetric_logsumexp(a, c, 30.0, valid=(rows, valid), **how)
  np.testing.assert_allclose(both[0], want, rtol=2e-6)
  np.testing.assert_allclose(
    both[1], loop(c, a, 30.0, 0.5, rows, exclude), rtol=2e-6, atol=2e-6
  )


@pytest.mark.parametrize("strategy", ["dense", "tiled"])
def test_pair_sum_and_marks_are_a_double_loop(strategy):
  a, c = make(13, 19)
  marks = np.arange(13, dtype=np.int32) // 2, np.arange(19, dtype=np.int32) // 3
  valid = np.arange(13) % 4 != 2, np.arange(19) % 3 != 1
  want, others = np.zeros(13), np.full(13, -np.inf)
  for i in range(13):
    for j in range(19):
      s = 7.0 * float(a[i].astype(np.float64) @ c[j].astype(np.float64)) - 2.0
      alike = marks[0][i] == marks[1][j]
      if valid[0][i] and valid[1][j]:
        want[i] += np.logaddexp(0.0, -s if alike else s)
      if not alike:
        others[i] = np.logaddexp(others[i], s)
  how = dict(strategy=strategy, bias=-2.0, tile=4)
  got = reduce.pair_sum(pair_loss, a, c, 7.0, valid=valid, positive=marks, **how)
  np.testing.assert_allclose(got, want, rtol=2e-6)
  got = reduce.row_logsumexp(a, c, 7.0, exclude=marks, **how)
  np.testing.assert_allclose(got, others, rtol=2e-6)


@pytest.mark.parametrize("strategy", ["dense", "tiled", "ring"])
def test_a_second_score_and_several_sums(strategy):
  a, c = make(13, 19)
  (g, h), marks = make(13, 19, d=5, seed=4), (np.arange(13) // 2, np.arange(19) // 3)
  valid = np.arange(13) % 4 != 2, np.arange(19) % 3 != 1
  want = np.zeros((2, 13))
  for i in range(13):
    for j in range(19):
      s = 7.0 * float(a[i].astype(np.float64) @ c[j].astype(np.float64))
      alike = marks[0][i] == marks[1][j]
      if valid[0][i] and valid[1][j]:
        want[0, i] += np.exp(g[i].astype(np.float64) @ h[j]) * (s if alike else s * s)
        want[1, i] += alike

  def f(a, g, c, h):
    positive = tuple(jnp.asarray(m, jnp.int32) for m in marks)
    how = dict(positive=positive, given=(g, h), strategy=strategy, tile=4)
    sums = reduce.pair_sum(weigh, a, c, 7.0, valid=valid, **how)
    return jnp.sum(sums[0]), sums

  with jax.set_mesh(mesh_of((2, 2, 2, 1))):
    grad = jax.grad(f, argnums=(0, 1, 3), has_aux=True)
    grads, got = jax.device_get(jax.jit(grad)(a, g, c, h))
  np.testing.assert_allclose(got, want, rtol=3e-6, atol=3e-6)
  assert np.abs(grads[0]).max() > 0
  assert all(np.all(x == 0) for x in grads[1:])  # the second score is only given


@pytest.mark.parametrize(
  ("strategy", "shape"),
  [
    ("tiled", "none"),
    ("ring", "one"),
    ("tiled", "data8"),
    ("ring", "data8"),
    ("dense", "split"),
    ("tiled", "split"),
    ("ring", "split"),
    ("auto", "split"),
    ("ring", "tensor"),
  ],
)
def test_strategies_agree_in_value_and_gradient_on_every_mesh(strategy, shape):
  assert_near(result(strategy, SHAPES[shape]), result("dense", None))


def test_tiled_in_one_tile_and_tile_that_divides():
  want = result("dense", None)
  for tile in (8, 1000):
    f = functools.partial(objective, strategy="tiled", tile=tile)
    grad = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2, 3)))
    assert_near(grad(*make(), 14.0, -1.0), want)


@pytest.mark.parametrize("strategy", ["tiled", "ring"])
def test_sizes_that_the_devices_cannot_share(strategy):
  a, c = make(13, 19)

  def f(a, c, scale, *, strategy):
    rows, cols = reduce.symmetric_logsumexp(a, c, scale, strategy=strategy, tile=2)
    return jnp.sum(rows**2) + jnp.sum(cols), (rows, cols)

  def run(strategy):
    g = jax.value_and_grad(
      functools.partial(f, strategy=strategy), argnums=(0, 1, 2), has_aux=True
    )
    return jax.device_get(jax.jit(g)(a, c, 14.0))

  want = run("dense")
  with jax.set_mesh(mesh_of((2, 2, 2, 1))):
    assert_near(run(strategy), want)


@pytest.mark.parametrize("strategy", ["dense", "tiled"])
def test_large_scores_do_not_overflow(strategy):
  a, c = make(9)
  got = reduce.row_logsumexp(a, c, 1e4, strategy=strategy, tile=4)
  np.testing.assert_allclose(
    got, loop(a, c, 1e4, 0.0, np.ones(9, bool), None), rtol=2e-6
  )


@pytest.mark.parametrize("strategy", ["dense", "tiled"])
def test_a_row_without_columns_gives_minus_infinity_and_no_gradient(strategy):
  a, c = make(6)
  none = jnp.zeros(6, bool)

  def f(a, c, scale):
    rows, cols = reduce.symmetric_logsumexp(
      a, c, scale, valid=none, strategy=strategy, tile=4
    )
    both = jnp.concatenate([rows, cols])
    return jnp.sum(jnp.where(jnp.isneginf(both), 0.0, both)), both

  (_, both), grads = jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2), has_aux=True))(
    a, c, 3.0
  )
  assert np.isneginf(both).all()
  assert all(np.all(np.asarray(g) == 0) for g in grads)


@pytest.mark.parametrize("strategy", ["dense", "tiled", "ring"])
def test_top_k_is_a_sort(strategy):
  a, c = make(13, 19)
  valid = np.arange(19) % 3 != 1

  @jax.jit
  def f(a, c):
    return reduce.row_top_k(
      a, c, 14, valid=jnp.asarray(valid), exclude="diagonal", strategy=strategy, tile=5
    )

  with jax.set_mesh(mesh_of((2, 2, 2, 1))):
    values, index = jax.device_get(f(a, c))
  for i in range(13):
    s = np.where(valid & (np.arange(19) != i), a[i] @ c.T, -np.inf)
    order = np.argsort(-s)[: np.isfinite(s).sum()][:14]
    np.testing.assert_array_equal(index[i, : len(order)], order)
    np.testing.assert_allclose(values[i, : len(order)], s[order], atol=1e-6)
    assert (index[i, len(order) :] == -1).all()
    assert np.isneginf(values[i, len(order) :]).all()


@pytest.mark.parametrize("strategy", ["tiled", "ring"])
def test_bfloat16_products_are_summed_in_float32(strategy):
  a, c = (jnp.asarray(x).astype(jnp.bfloat16) for x in make())

  def f(a, c, *, strategy):
    rows, cols = reduce.symmetric_logsumexp(a, c, 14.0, strategy=strategy, tile=7)
    return jnp.mean(rows + cols)

  dense = jax.jit(jax.value_and_grad(functools.partial(f, strategy="dense"), (0, 1)))
  want, grads = dense(a.astype(jnp.float32), c.astype(jnp.float32))
  with jax.set_mesh(mesh_of((8, 1, 1, 1))):
    g = jax.jit(jax.value_and_grad(functools.partial(f, strategy=strategy), (0, 1)))
    got, got_grads = g(a, c)
  np.testing.assert_allclose(got, want, rtol=3e-6)
  for x, y in zip(got_grads, grads):
    assert x.dtype == jnp.bfloat16
    scale = np.abs(y).max()
    assert np.abs(np.asarray(x, np.float32) - y).max() < 8e-3 * scale


def temp_bytes(strategy, b, shape, d=32, tile=32):
  def f(a, c, scale):
    how = dict(strategy=strategy, tile=tile)
    rows, cols = reduce.symmetric_logsumexp(a, c, scale, **how)
    return jnp.mean(rows + cols)

  x = jax.ShapeDtypeStruct((b, d), jnp.float32)
  with jax.set_mesh(mesh_of(shape)):
    split = jax.NamedSharding(mesh_of(shape), P(MESH_AXES[:3]))
    g = jax.jit(
      jax.grad(f, argnums=(0, 1)),
      in_shardings=(split, split, None),
      out_shardings=split,
    )
    compiled = g.lower(x, x, jax.ShapeDtypeStruct((), jnp.float32)).compile()
  return compiled.memory_analysis().temp_size_in_bytes, compiled.as_text()


@pytest.mark.parametrize(
  ("strategy", "shape"),
  [("tiled", (1, 1, 1, 1)), ("tiled", (8, 1, 1, 1)), ("ring", (2, 2, 2, 1))],
)
def test_memory_grows_with_the_batch_not_with_its_square(strategy, shape):
  small, big = (temp_bytes(strategy, b, shape)[0] for b in (2048, 4096))
  assert big < 2.2 * small
  # Had the backward pass kept the scores, they alone would need b^2 / devices.
  assert big < 4096**2 * 4 / np.prod(shape) / 4


def test_dense_memory_grows_with_the_square():
  small, big = (temp_bytes("dense", b, (1, 1, 1, 1))[0] for b in (1024, 2048))
  assert big > 3.5 * small


def test_ring_gathers_nothing_and_tiled_gathers():
  ring = temp_bytes("ring", 256, (2, 2, 2, 1))[1]
  assert "collective-permute" in ring and "all-gather" not in ring
  assert "all-gather" in temp_bytes("tiled", 256, (2, 2, 2, 1))[1]


def test_columns_are_gathered_and_their_gradients_scattered_axis_by_axis():
  # Over several axes at once, the TPU compiler sends the whole sum: twice the bytes.
  mesh = mesh_of(SHAPES["split"])
  spec = jax.ShapeDtypeStruct((B, D), jnp.float32)

  def loss(a, c):
    return jnp.sum(reduce.row_logsumexp(a, c, 2.0, strategy="tiled"))

  with jax.set_mesh(mesh):
    program = str(jax.make_jaxpr(jax.grad(loss, 1))(spec, spec))
  scatters = re.findall(r"reduce_scatter\[[^\]]*axis_name=(\(.*\))", program)
  assert scatters == ["('data',)", "('fsdp',)", "('expert',)"]
  gathers = re.findall(r"all_gather\[[^\]]*axis_name=(\(.*\))", program)
  one = ["('expert',)", "('fsdp',)", "('data',)"]
  assert gathers == one * (len(gathers) // 3) and gathers


def test_auto_chooses_by_size(monkeypatch):
  row = reduce.sides(*make(), None, "none")[0]
  assert reduce.plan_of("auto", None, row, row).strategy == "dense"
  assert reduce.plan_of("auto", 8, row, row).strategy == "tiled"
  with jax.set_mesh(mesh_of((2, 2, 2, 1))):
    assert reduce.plan_of("auto", None, row, row).strategy == "tiled"
    monkeypatch.setattr(reduce, "GATHER_BYTES", 1)
    assert reduce.plan_of("auto", None, row, row).strategy == "ring"


def test_errors_say_what_was_got():
  a, c = make(4)
  with pytest.raises(ValueError, match=r"strategy = 'tilde' must be one of"):
    reduce.row_logsumexp(a, c, 1.0, strategy="tilde")
  with pytest.raises(ValueError, match=r"got \(4, 16\) and \(4, 15\)"):
    reduce.row_logsumexp(a, c[:, 1:], 1.0)
  with pytest.raises(ValueError, match=r"valid must be \[4\]; got \(3,\)"):
    reduce.row_logsumexp(a, c, 1.0, valid=np.ones(3, bool))
  with pytest.raises(ValueError, match="tile = 0 must be at least 1"):
    reduce.row_logsumexp(a, c, 1.0, tile=0)
  with pytest.raises(ValueError, match=r"given must be \[4, d2\]; got \(3, 16\)"):
    reduce.pair_sum(weigh, a, c, 1.0, given=(a, c[1:]))
  with pytest.raises(ValueError, match="'diag' must be 'diagonal' or"):
    reduce.row_logsumexp(a, c, 1.0, exclude="diag")


def test_a_local_batch_is_refused():
  a, c = make(16)
  mesh = mesh_of((8, 1, 1, 1))
  f = jax.shard_map(
    lambda a, c: lax.psum(jnp.sum(reduce.row_logsumexp(a, c, 1.0)), "data"),
    mesh=mesh,
    in_specs=P("data"),
    out_specs=P(),
  )
  with jax.set_mesh(mesh), pytest.raises(ValueError, match="on the global batch"):
    jax.jit(f)(a, c)
