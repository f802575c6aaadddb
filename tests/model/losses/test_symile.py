"""Symile against loops over all tuples in f64; XOR; and CLIP, with two modalities."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.losses import infonce, symile
from model.losses import tuples as tuples_lib
from tests.model.losses import loops

THREE = ("image", "text", "audio")
VALID = np.arange(loops.B) % 4 != 1
IDS = np.asarray([31, 4, 15, 92, 65, 35, 89, 79, 32], np.int32)


def product(z, tuples):
  """m of one row of each modality: {modality: row}."""
  return np.sum(np.prod([z[m][i] for m, i in tuples.items()], axis=0))


def every(names, rows, i):
  """All tuples of the modalities `names`, to contrast with row i."""
  del i
  return [dict(zip(names, x)) for x in itertools.product(rows, repeat=len(names))]


@functools.cache
def hashed():
  return np.asarray(tuples_lib.hashed(jnp.asarray(IDS)))


def some(names, rows, i):
  """The positive, and a tuple of each other row: the k-th modality k places on."""
  h = hashed()
  order = sorted(rows, key=lambda row: h[row])
  tuples = [dict.fromkeys(names, i)]
  for at, row in enumerate(order):
    if row != i:
      shifted = {m: order[(at + k) % len(order)] for k, m in enumerate(names)}
      tuples.append(shifted)
  return tuples


def loop_of(modalities, tuples):
  def loop(z, scale):
    rows, terms = loops.rows_of(VALID), []
    for at, anchor in enumerate(modalities):
      names = [*modalities[at + 1 :], *modalities[:at]]
      for i in rows:
        own = scale * product(z, dict.fromkeys(modalities, i))
        contrast = tuples(names, rows, i)
        logits = [scale * product(z, {anchor: i} | t) for t in contrast]
        terms.append(loops.lse(logits) - own)
    return np.mean(terms)

  return loop


@pytest.mark.parametrize(
  ("tuples", "modalities"),
  [
    ("all", THREE),
    ("some", THREE),
    ("some", ("image", "text", "audio", "depth")),
  ],
)
def test_value_and_gradient_are_the_loop_over_tuples(tuples, modalities):
  z = loops.make(modalities=modalities)
  loss = symile.Loss(modalities=modalities, scale=9.0, tuples=tuples)
  loop = loop_of(modalities, every if tuples == "all" else some)
  loops.check(loss, loop, z, {"valid": VALID, "id": IDS}, 9.0)


def test_all_tuples_of_four_modalities():
  modalities = ("image", "text", "audio", "depth")
  z = loops.make(modalities=modalities, b=5)
  loss = symile.Loss(modalities=modalities, tuples="all", scale=9.0)
  (value, _), _ = loops.evaluate(loss, z, {"valid": VALID[:5]})
  rows = loops.rows_of(VALID[:5], 5)
  terms = []
  for anchor, i in itertools.product(modalities, rows):
    names = [m for m in modalities if m != anchor]
    logits = [9.0 * product(z, {anchor: i} | t) for t in every(names, rows, i)]
    terms.append(loops.lse(logits) - 9.0 * product(z, dict.fromkeys(modalities, i)))
  np.testing.assert_allclose(value, np.mean(terms), rtol=3e-6)


@pytest.mark.parametrize("tuples", ["some", "all"])
def test_two_modalities_are_infonce(tuples):
  z, batch = loops.make(1), {"valid": VALID}  # without ids: there is nothing to pair
  loss = symile.Loss(modalities=("image", "text"), tuples=tuples, scale=10.0)
  (value, _), (grads, dz) = loops.evaluate(loss, z, batch)
  (want, _), (want_grads, want_dz) = loops.evaluate(
    infonce.Loss(temperature=0.1), z, batch
  )
  np.testing.assert_allclose(value, want, rtol=1e-5)
  for m in z:
    np.testing.assert_allclose(dz[m], want_dz[m], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(grads["log_scale"], want_grads["log_scale"], rtol=1e-4)


def test_no_column_joins_two_modalities_of_one_row():
  valid = jnp.asarray(VALID)
  partners = tuples_lib.partners_of(2, {"id": IDS}, valid)
  seen = [np.arange(loops.B), *map(np.asarray, partners)]
  for one, other in itertools.combinations(seen, 2):
    assert np.all((one != other)[VALID])
  for partner in seen:  # each valid row is used once, by a valid column
    np.testing.assert_array_equal(np.sort(partner[VALID]), np.flatnonzero(VALID))


def test_hashes_differ_and_do_not_follow_the_ids():
  h = np.asarray(tuples_lib.hashed(jnp.arange(10_000, dtype=jnp.int32)))
  assert len(set(h.tolist())) == 10_000
  assert abs(np.corrcoef(np.arange(10_000), h)[0, 1]) < 0.05


def test_xor_is_seen_by_symile_and_by_no_pair():
  rng = np.random.default_rng(0)
  bits = rng.integers(0, 2, (2, 64))
  raw = {"image": bits[0], "text": bits[1], "audio": bits[0] ^ bits[1]}
  batch = {"id": np.arange(64, dtype=np.int32)}
  # m = (-1)^(a + b + c) is 1 on every tuple: solves XOR. Pairs see only noise.
  sign = {m: (1.0 - 2.0 * x)[:, None].astype(np.float32) for m, x in raw.items()}
  loss = symile.Loss(scale=30.0, learned=False)
  (value, _), _ = loops.evaluate(loss, sign, batch)
  (blind, _), _ = loops.evaluate(loss, {m: x * 0 for m, x in sign.items()}, batch)
  np.testing.assert_allclose(blind, np.log(64), rtol=1e-6)
  assert value == pytest.approx(np.log(32), abs=0.25)  # one bit is known
  pairs = tuple(itertools.combinations(THREE, 2))
  clip = infonce.Loss(pairs=pairs, temperature=1.0, learned=False)
  (value, _), _ = loops.evaluate(clip, sign, batch)
  assert value > np.log(64)


@pytest.mark.parametrize("tuples", ["some", "all"])
@pytest.mark.parametrize("rows", [0, 1])
def test_one_row_or_none_has_no_loss(rows, tuples):
  batch = {"valid": np.arange(loops.B) < rows, "id": IDS}
  z = loops.make(modalities=THREE)
  (value, metrics), (grads, dz) = loops.evaluate(symile.Loss(tuples=tuples), z, batch)
  assert abs(value) < 1e-6 and all(np.isfinite(x) for x in metrics.values())
  assert all(np.abs(x).max() < 1e-5 for x in (*grads.values(), *dz.values()))


def test_ids_may_repeat():
  z = loops.make(modalities=THREE)
  (value, _), (_, dz) = loops.evaluate(
    symile.Loss(), z, {"id": np.zeros(loops.B, np.int32)}
  )
  assert np.isfinite(value) and all(np.isfinite(x).all() for x in dz.values())


def test_all_tuples_are_not_kept_for_the_backward_pass():
  b, d = 128, 16
  x = {m: jax.ShapeDtypeStruct((b, d), jnp.float32) for m in THREE}
  loss = symile.Loss(tuples="all", learned=False, strategy="tiled", tile=16)
  f = jax.jit(jax.grad(lambda z: loss({}, z, {})[0]))
  # Kept scores would be b^3 numbers, kept products b^2 d.
  assert f.lower(x).compile().memory_analysis().temp_size_in_bytes < b * b * d * 4


def test_errors():
  with pytest.raises(ValueError, match="must be two or more different names"):
    symile.Loss(modalities=("image", "image"))
  with pytest.raises(ValueError, match="tuples = 'n' must be 'some' or 'all'"):
    symile.Loss(tuples="n")
  with pytest.raises(ValueError, match="scale = 0 must be above 0"):
    symile.Loss(scale=0)
  with pytest.raises(ValueError, match=r'by batch\["id"\], i32\[b\]'):
    symile.Loss(learned=False)({}, loops.make(modalities=THREE), {})
