"""What every file of model/losses that defines a Loss promises; nothing to register.

A new loss is swept as soon as its file exists, with its default options.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from benchmarks import loss_inputs
from model.types import BATCH_AXES, MESH_AXES

MESH = (2, 2, 2, 1)
B, D, DROPPED = 24, 16, 5
NAMES = loss_inputs.names()
modalities, teachers = loss_inputs.modalities, loss_inputs.teachers


def build(name, **options):
  return loss_inputs.build(name, D, **options)


def embeddings(loss, b=B):
  return loss_inputs.embeddings(loss, b, D)


def _like(keep, x):
  """keep bool[b], to broadcast against x [b, ...]."""
  return keep.reshape(-1, *(x.ndim - 1) * (1,))


def rows(z, index):
  return jax.tree.map(lambda x: x[index], z)


def batch_rows(batch, index):
  """The rows of a batch in another order, or fewer: those gone are nobody's partner."""
  places = np.full(len(batch["id"]) + 1, -1, np.int32)  # the last is that of -1
  kept = np.arange(len(batch["id"]))[index]
  places[kept] = np.arange(len(kept))
  return {
    key: places[x[index]] if key.endswith("_partner") else x[index]
    for key, x in batch.items()
  }


def batch_of(loss, b=B):
  return loss_inputs.batch_of(loss, b)


def parameters(loss):
  return loss.init(jax.random.key(0))


TRACES = []


@functools.cache  # losses that are equal share what was compiled
def value_and_grad(loss):
  def f(params, z, batch):
    TRACES.append(loss)
    return loss(params, z, batch)

  return jax.jit(jax.value_and_grad(f, argnums=(0, 1), has_aux=True))


@functools.cache
def reference(name):
  loss = build(name)
  out = value_and_grad(loss)(parameters(loss), embeddings(loss), batch_of(loss))
  return jax.device_get(out)


def on_mesh(loss, shape):
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  mesh = jax.make_mesh(shape, MESH_AXES, axis_types=auto)
  with jax.set_mesh(mesh):
    split = jax.NamedSharding(mesh, P(BATCH_AXES))
    z, batch = jax.device_put((embeddings(loss), batch_of(loss)), split)
    return jax.device_get(value_and_grad(loss)(parameters(loss), z, batch))


def distance(got, want):
  """The greatest difference, and the greatest size, of each leaf."""
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    yield np.max(np.abs(x - y)), np.max(np.abs(y))


def assert_near(got, want, tolerance=3e-6):
  for error, size in distance(got, want):
    assert error <= tolerance * max(size, 1e-2)


def assert_slopes_near(got, want, tolerance=3e-6):
  """For gradients by parameters such as log(scale), of one digit before cancellation.

  They are differences of sums of scale * similarity, here up to 14 * 0.7, whose last
  bit (8.5e-7) is theirs: against f64, dense and tiled err by 1.7e-6 each, either way.
  """
  for error, size in distance(got, want):
    assert error <= tolerance * max(size, 14 * 0.7)


def assert_outputs_near(got, want, tolerance=3e-6):
  """Both ((value, metrics), (gradient by parameters, gradient by z))."""
  assert_near((got[0], got[1][1]), (want[0], want[1][1]), tolerance)
  assert_slopes_near(got[1][0], want[1][0], tolerance)


def test_the_two_losses_of_the_spine_are_discovered():
  assert {"infonce", "siglip"} <= set(NAMES)
  assert not {"reduce", "pairs", "scale", "reductions"} & set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_value_and_gradient_are_finite(name):
  (value, metrics), (grads, dz) = reference(name)
  dz = dict(dz)
  assert value.shape == () and value.dtype == np.float32 and np.isfinite(value)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((metrics, grads, dz)))
  taught = {m: dz.pop(m) for m in teachers(build(name))}
  assert all(np.abs(x).max() > 0 for x in jax.tree.leaves((grads, dz)))
  assert not any(x.any() for x in jax.tree.leaves(taught)), "teachers have no gradient"
  assert all(k.startswith(f"{name}/") for k in metrics)
  assert hash(build(name)) == hash(build(name))


@pytest.mark.parametrize("name", NAMES)
def test_permuted_rows_permute_the_gradient(name):
  loss = build(name)
  order = np.random.default_rng(1).permutation(B)
  z, batch = rows(embeddings(loss), order), batch_rows(batch_of(loss), order)
  (value, _), (grads, dz) = value_and_grad(loss)(parameters(loss), z, batch)
  (want, _), (want_grads, want_dz) = reference(name)
  assert_near(value, want)
  assert_slopes_near(grads, want_grads)
  assert_near(dz, rows(want_dz, order))


@pytest.mark.parametrize("name", NAMES)
def test_masked_rows_are_dropped_rows(name):
  loss = build(name)
  keep = np.random.default_rng(2).permutation(B) >= DROPPED
  z = embeddings(loss)
  z = jax.tree.map(lambda x: np.where(_like(keep, x), x, np.float32(50) * x[::-1]), z)
  f = value_and_grad(loss)
  # Half of them are not valid, half lack what the loss compares.
  absent = ~keep & (np.arange(B) % 2 == 0)
  batch = {**batch_of(loss), "valid": keep | absent}
  batch |= {f"{m}_valid": ~absent for m in z}
  (value, metrics), (grads, dz) = f(parameters(loss), z, batch)
  few = rows(z, keep)
  # `valid` may be left out
  want_batch = batch_rows(batch_of(loss), keep)
  want_batch.pop("valid")
  (want, want_metrics), (want_grads, want_dz) = f(parameters(loss), few, want_batch)
  assert_near((value, metrics), (want, want_metrics))
  assert_slopes_near(grads, want_grads)
  assert_near(rows(dz, keep), want_dz)
  assert all(np.all(np.asarray(x)[~keep] == 0) for x in jax.tree.leaves(dz))


@pytest.mark.parametrize("name", NAMES)
def test_eight_devices_are_one_device(name):
  # Over three axes of the batch: test_reduce.py has the other meshes.
  assert_outputs_near(on_mesh(build(name), MESH), reference(name))


@pytest.mark.parametrize("strategy", ["tiled", "ring"])
@pytest.mark.parametrize("name", NAMES)
def test_strategies_are_equal(name, strategy):
  loss = build(name)
  if "strategy" not in {f.name for f in dataclasses.fields(loss)}:
    pytest.skip("has no strategies")
  loss = dataclasses.replace(loss, strategy=strategy, tile=5)
  # The reference is dense: so is "auto" of so few rows on one device. There, ring is
  # tiled by definition.
  if strategy == "tiled":
    out = value_and_grad(loss)(parameters(loss), embeddings(loss), batch_of(loss))
    assert_outputs_near(out, reference(name))
  assert_outputs_near(on_mesh(loss, MESH), reference(name))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_is_close_to_float32(name):
  loss = build(name)
  z = embeddings(loss)
  # Of a teacher's similarities some losses take the ranks, which rounding may swap.
  own = {m: x for m, x in z.items() if m not in teachers(loss)}
  z |= jax.tree.map(lambda x: x.astype(jnp.bfloat16), own)
  out = value_and_grad(loss)(parameters(loss), z, batch_of(loss))
  assert out[0][0].dtype == jnp.float32
  # bf16 keeps 8 bits of each coordinate: 0.4%, a few of which meet in a score of 14.
  assert_outputs_near(out, reference(name), 3e-2)


@pytest.mark.parametrize("name", NAMES)
def test_new_values_do_not_recompile(name):
  loss = build(name)
  f = value_and_grad(loss)
  params, z = parameters(loss), embeddings(loss)
  f(params, z, batch_of(loss))
  traced = len(TRACES)
  assert loss in TRACES
  moved = jax.tree.map(lambda x: x + 0.1, params)
  f(moved, rows(z, slice(None, None, -1)), batch_of(loss))
  assert len(TRACES) == traced
