"""logsumexp of a function of the score, or of some pairs, against a double loop."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from model.losses import reduce
from model.types import MESH_AXES
from tests import slopes

B, D, SCALE, BIAS = 10, 4, 3.0, 0.5
MARKS = np.arange(B, dtype=np.int32) // 2, np.arange(B, dtype=np.int32) // 3
VALID = np.arange(B) % 4 != 1
WEIGHT = np.random.default_rng(3).normal(size=(2, B))


def curve(xp, s, same):
  return xp.where(same, s - 1.0, 0.3 * s**2)


def loop(z, kind):
  """The weighted sum over rows and columns, in f64, one pair at a time."""
  total = 0.0
  for a, b, w, back in (
    (*z.values(), WEIGHT[0], 0),
    (*[*z.values()][::-1], WEIGHT[1], 1),
  ):
    for i in range(B):
      out = -np.inf
      for j in range(B):
        alike = MARKS[0][j if back else i] == MARKS[1][i if back else j]
        keep = {"exclude": not alike, "only": alike}[kind]
        if VALID[j] and keep:
          s = curve(np, SCALE * (a[i] @ b[j]) + BIAS, alike)
          out = np.logaddexp(out, s)
      total += w[i] * out if np.isfinite(out) else 0.0
  return total


@pytest.mark.parametrize("kind", ["exclude", "only"])
@pytest.mark.parametrize("strategy", ["dense", "tiled", "ring"])
def test_value_and_gradient_are_the_double_loop(strategy, kind):
  def f(a, b):
    both = reduce.symmetric_logsumexp(
      a,
      b,
      SCALE,
      bias=BIAS,
      valid=jnp.asarray(VALID),
      fn=functools.partial(curve, jnp),
      strategy=strategy,
      tile=3,
      **{kind: tuple(jnp.asarray(m) for m in MARKS)},
    )
    return sum(
      jnp.sum(jnp.where(jnp.isneginf(x), 0.0, w * x))
      for w, x in zip(WEIGHT.astype(np.float32), both)
    )

  z = slopes.unit(B, D)
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  mesh = jax.make_mesh((2, 2, 2, 1), MESH_AXES, axis_types=auto)
  with jax.set_mesh(mesh):
    split = jax.NamedSharding(mesh, P())
    value, grad = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))(
      *jax.device_put(tuple(z.values()), split)
    )
  exact = {m: x.astype(np.float64) for m, x in z.items()}
  np.testing.assert_allclose(value, loop(exact, kind), rtol=3e-6)
  want = slopes.slopes(functools.partial(loop, kind=kind), exact)
  for g, w in zip(grad, want.values()):
    np.testing.assert_allclose(g, w, rtol=0, atol=2e-5 * np.abs(w).max())


@pytest.mark.parametrize("strategy", ["dense", "tiled"])
def test_only_the_pairs_of_equal_mark(strategy):
  a, c = slopes.unit(13, D)["image"], slopes.unit(19, D)["text"]
  marks = np.arange(13, dtype=np.int32) // 2, np.arange(19, dtype=np.int32) // 3
  valid = np.arange(13) // 2 != 2, np.arange(19) % 5 != 1
  s = 7.0 * a.astype(np.float64) @ c.astype(np.float64).T
  want = np.full(13, -np.inf), np.full(19, -np.inf)
  for i, j in zip(*np.nonzero(marks[0][:, None] == marks[1][None, :])):
    if valid[1][j]:
      want[0][i] = np.logaddexp(want[0][i], s[i, j])
    if valid[0][i]:
      want[1][j] = np.logaddexp(want[1][j], s[i, j])
  got = reduce.symmetric_logsumexp(
    a, c, 7.0, valid=valid, only=marks, strategy=strategy, tile=4
  )
  for x, y in zip(got, want):
    np.testing.assert_allclose(x, y, rtol=2e-6, atol=2e-6)
  assert np.isneginf(want[1]).any()  # a column whose rows are not valid
  alone = reduce.row_logsumexp(
    a, c, 7.0, valid=jnp.asarray(valid[1]), only=marks, strategy=strategy, tile=4
  )
  np.testing.assert_array_equal(alone, got[0])


@pytest.mark.parametrize("strategy", ["dense", "tiled", "ring"])
def test_pairs_that_do_not_count_may_overflow_what_is_summed(strategy):
  def f(a, b, given):
    total = reduce.pair_sum(
      lambda s, alike, t: jnp.exp(s) * jnp.exp(t),
      a,
      b,
      SCALE,
      given=given,
      valid=jnp.asarray(VALID),
      strategy=strategy,
      tile=3,
    )
    return jnp.sum(WEIGHT[0].astype(np.float32) * total)

  f = jax.jit(jax.value_and_grad(f, argnums=(0, 1)))
  z, g = (tuple(slopes.unit(B, D, seed=seed).values()) for seed in (0, 1))
  value, want = f(*z, g)
  for wild in ((True, False), (False, True)):  # either score: exp(300) is infinite
    x, t = (
      tuple(np.where(VALID[:, None] | ~over, v, 100 * v) for v in side)
      for side, over in zip((z, g), np.array(wild))
    )
    got, slope = f(*x, t)
    np.testing.assert_allclose(got, value, rtol=1e-6)
    for a, b in zip(slope, want):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_only_and_exclude_do_not_go_together():
  z = jnp.ones((2, 2))
  with pytest.raises(ValueError, match="give exclude or only, not both"):
    reduce.row_logsumexp(z, z, 1.0, exclude="diagonal", only="diagonal")
