"""Queues and banks: what they hold after every step, and on which device."""

import collections

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from model.objectives import memory
from sharding import mesh as meshes
from sharding import rules

B, D = 8, 4


def batches(n, seed=0):
  rng = np.random.default_rng(seed)
  for i in range(n):
    keys = rng.standard_normal((B, D)).astype(np.float32)
    yield keys, rng.random(B) < 0.8, np.arange(B, dtype=np.int32) + i * B


def test_a_queue_is_a_deque_of_batches():
  held, deque = memory.queue(3 * B, B, D), collections.deque(maxlen=3 * B)
  for keys, valid, ids in batches(8):  # wraps twice, and not at a round number
    held = memory.push(held, keys, valid, ids)
    deque.extend(zip(keys, valid, ids))
    got = memory.columns(held)
    rows = {int(i): k for k, v, i in zip(*got) if v}
    want = {int(i): k for k, v, i in deque if v}
    assert rows.keys() == want.keys()
    for i, k in want.items():
      np.testing.assert_array_equal(rows[i], k)


def test_an_empty_queue_has_no_valid_column():
  got = memory.columns(memory.queue(2 * B, B, D))
  assert got.keys.shape == (2 * B, D) and not got.valid.any()


@pytest.mark.parametrize(
  ("length", "message"), [(20, r"20 % 8 = 4\).*to 16 or 24"), (4, r"to 8, or change")]
)
def test_a_queue_of_broken_batches_is_an_error(length, message):
  with pytest.raises(ValueError, match=message):
    memory.queue(length, B, D)


def test_no_gradient_enters_a_queue_or_a_bank():
  held, bank = memory.queue(B, B, D), memory.bank(jax.random.key(0), B, D)
  keys, valid, ids = next(batches(1))

  def kept(z):
    new = memory.blend(bank, ids, z, valid, 0.5)["rows"]
    return jnp.sum(memory.push(held, z, valid, ids)["keys"]) + jnp.sum(new)

  np.testing.assert_array_equal(jax.grad(kept)(keys), 0)


def test_the_random_rows_of_a_bank_have_norm_about_one():
  rows = memory.bank(jax.random.key(0), 64, 128)["rows"]
  np.testing.assert_allclose(np.linalg.norm(rows, axis=-1), 1, atol=0.15)


def test_a_bank_moves_the_rows_of_its_ids_and_no_others():
  held = memory.bank(jax.random.key(0), 12, D)
  old = np.asarray(held["rows"])
  ids = np.array([3, 0, 3, 11, 12, -1, 7, 5], np.int32)  # 12 and -1 are not inside
  z, *_ = next(batches(1))
  valid = np.array([1, 1, 1, 1, 1, 1, 0, 1], bool)
  got = np.asarray(memory.blend(held, ids, z, valid, 0.75)["rows"])
  for row in range(12):
    first = {3: 0, 0: 1, 11: 3, 5: 7}.get(row)  # 7 is not valid
    want = old[row] if first is None else 0.75 * old[row] + 0.25 * z[first]
    want = want if first is None else want / np.linalg.norm(want)
    np.testing.assert_allclose(got[row], want, rtol=1e-6)
  assert list(memory.inside(held, ids)) == [1, 1, 1, 1, 0, 0, 1, 1]
  np.testing.assert_array_equal(memory.read(held, ids)[3], old[11])


@pytest.fixture(scope="module")
def placed():
  """(mesh, state of a queue and a bank over 8 devices), laid out by the rules."""
  mesh = meshes.make(dict(data=2, fsdp=2, expert=2))
  state = {
    memory.QUEUE: {"image": memory.queue(3 * B, B, D)},
    memory.BANK: {"image": memory.bank(jax.random.key(0), 64, D)},
  }
  return mesh, jax.device_put(state, rules.specs(state, mesh))


def test_every_device_holds_its_share(placed):
  mesh, state = placed
  split = P(("data", "fsdp", "expert"))
  queue, bank = state["queue"]["image"], state["bank"]["image"]
  for x in (queue["keys"], queue["valid"], queue["ids"], bank["rows"]):
    assert x.sharding.spec == split
    assert x.addressable_shards[0].data.size == x.size // 8
  assert queue["next"].sharding.spec == P()
  del mesh


def test_no_key_leaves_its_device(placed):
  mesh, state = placed
  keys, valid, ids = jax.device_put(next(batches(1)), meshes.batch_sharding(mesh))
  held = state["queue"]["image"]

  def step(held, keys, valid, ids):
    new = memory.push(held, keys, valid, ids)
    return new, memory.columns(new)

  shardings = jax.tree.map(lambda x: x.sharding, held)
  columns = memory.Columns(*(3 * [meshes.batch_sharding(mesh)]))
  with jax.set_mesh(mesh):
    run = jax.jit(step, out_shardings=(shardings, columns))
    text = run.lower(held, keys, valid, ids).compile().as_text()
  for sent in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
    assert sent not in text


def test_a_bank_is_never_gathered(placed):
  mesh, state = placed
  held = state["bank"]["image"]
  z, valid, ids = next(batches(1))
  want = memory.blend(
    jax.tree.map(jnp.asarray, jax.device_get(held)), ids, z, valid, 0.5
  )["rows"]
  z, valid, ids = jax.device_put((z, valid, ids), meshes.batch_sharding(mesh))

  def step(held, ids, z, valid):
    return memory.read(held, ids), memory.blend(held, ids, z, valid, 0.5)

  shardings = jax.tree.map(lambda x: x.sharding, held)
  with jax.set_mesh(mesh):
    run = jax.jit(step, out_shardings=(meshes.batch_sharding(mesh), shardings))
    compiled = run.lower(held, ids, z, valid).compile()
    got = compiled(held, ids, z, valid)[1]["rows"]
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert f"f32[64,{D}]" not in compiled.as_text()  # of no device
