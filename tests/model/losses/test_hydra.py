"""Hydra against a double loop in f64, and its gate."""

import jax
import numpy as np
import pytest

from model.losses import hydra
from tests import slopes

B, D, CLASSES, HIDDEN, T = 7, 4, 5, 3, 0.4
VALID = np.arange(B) != 2
FIRST = np.array([0, 1, -7, 3, 4, 0, 1], np.int32)
SECOND = np.array([2, 1, 99, 2, 0, 2, 3], np.int32)
BATCH = {"valid": VALID, "first": FIRST, "second": SECOND}


def make(**options):
  options = {"labels": ("first", "second"), **options}
  loss = hydra.Loss(dim=D, classes=CLASSES, hidden=HIDDEN, temperature=T, **options)
  params = loss.init(jax.random.key(1))
  return loss, jax.tree.map(lambda x: x + 0.1, params)


def gates(params):
  p = {k: np.asarray(x, np.float64) for k, x in params.items()}
  first, second = (np.where(VALID, c, 0) for c in (FIRST, SECOND))
  hidden = np.maximum(p["table"][first] + p["table"][second], 0)
  return 1 / (1 + np.exp(-(hidden @ p["kernel"] + p["bias"])))


def loop(z, params, renormalize=False, penalty=0.0):
  """One gate at a time, applied to both of what it compares."""
  g, rows, total = gates(params), np.flatnonzero(VALID), 0.0
  for a, b, kinds in (("image", "text", SECOND), ("text", "image", FIRST)):
    terms = []
    for i in rows:
      s = {}
      for j in rows:
        x, y = g[i] * z[a][i], g[i] * z[b][j]
        size = np.linalg.norm(x) * np.linalg.norm(y) if renormalize else 1.0
        s[j] = x @ y / size / T
      lse = np.log(sum(np.exp(v) for v in s.values()))
      terms += [lse - s[j] for j in rows if kinds[j] == kinds[i]]
    total += np.mean(terms) / 2
  return total + penalty * np.mean((g * (1 - g))[VALID])


@pytest.mark.parametrize(
  "options", [{}, dict(renormalize=True), dict(penalty=0.3)], ids=str
)
def test_value_and_slopes_are_the_double_loop(options):
  loss, params = make(**options)

  def split(both):
    return {k: both[k] for k in params}, {m: both[m] for m in ("image", "text")}

  def with_params(_, both, batch):
    params, z = split(both)
    return loss(params, z, batch)

  def want(both):
    params, z = split(both)
    return loop(z, params, **options)

  both = {**params, **slopes.unit(B, D)}
  slopes.assert_is(with_params, want, both, BATCH, slope=3e-5)


def test_the_gate_is_symmetric_in_its_classes_and_within_0_and_1():
  loss, params = make()
  f = jax.jit(loss.gate)
  first, second = (np.where(VALID, c, 0) for c in (FIRST, SECOND))
  g = f(params, first, second)
  np.testing.assert_array_equal(g, f(params, second, first))
  assert np.all((g > 0) & (g < 1)) and np.ptp(g) > 0.1


def test_a_label_of_no_class_is_not_taken_for_another():
  loss, params = make()
  first = np.where(np.arange(B) == 1, np.int32(CLASSES), FIRST)
  batch = {**BATCH, "first": first}
  assert np.isnan(jax.jit(loss)(params, slopes.unit(B, D), batch)[0])


@pytest.mark.parametrize("key", ["first", "second"])
def test_rows_of_no_label_are_left_out(key):
  loss, params = make()
  unknown = np.isin(np.arange(B), (1, 4))
  f = jax.jit(jax.value_and_grad(lambda z, b: loss(params, z, b)[0]))
  z = slopes.unit(B, D)
  got = f(z, {**BATCH, key: np.where(unknown, np.int32(-1), BATCH[key])})
  want = f(z, {**BATCH, "valid": VALID & ~unknown})
  assert got[0] == want[0] != 0
  for m in z:
    np.testing.assert_array_equal(got[1][m], want[1][m])
    assert np.all(got[1][m][unknown] == 0)


@pytest.mark.parametrize("renormalize", [False, True])
@pytest.mark.parametrize("valid", [np.zeros(B, bool), np.arange(B) == 1])
def test_one_row_has_nothing_to_be_told_from(valid, renormalize):
  loss, params = make(renormalize=renormalize)
  f = jax.jit(jax.value_and_grad(lambda z, b: loss(params, z, b)[0]))
  value, grad = f(slopes.unit(B, D), {**BATCH, "valid": valid})
  np.testing.assert_allclose(value, 0, atol=1e-6)
  assert all(np.isfinite(g).all() and np.all(g[~valid] == 0) for g in grad.values())


def test_both_sides_may_share_their_label():
  loss, params = make(labels=("first", "first"))
  other, _ = make()
  z = slopes.unit(B, D)
  got = jax.jit(loss)(params, z, {"valid": VALID, "first": FIRST})[0]
  want = jax.jit(other)(params, z, {**BATCH, "second": FIRST})[0]
  assert got == want


def test_errors_say_what_to_set():
  loss, params = make()
  with pytest.raises(ValueError, match=r"dim = 4 of hydra must be .* 6"):
    loss(params, slopes.unit(B, 6), BATCH)
  with pytest.raises(ValueError, match=r"no 'first' \(labels of hydra\)"):
    loss(params, slopes.unit(B, D), {"valid": VALID})
  with pytest.raises(ValueError, match="must be two keys"):
    hydra.Loss(labels="label")
