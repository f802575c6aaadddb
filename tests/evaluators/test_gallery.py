"""Galleries by tiles over the mesh are ranked as in one piece, and as by two loops."""

import jax
import numpy as np
import pytest

from evaluators import gallery
from sharding import mesh as meshes


@pytest.fixture(scope="module")
def mesh():
  return meshes.make(dict(data=4, fsdp=2))


def unit(rng, n, d):
  x = rng.normal(size=(n, d)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def case(tied, q=45, m=70, d=4):
  rng = np.random.default_rng(int(tied))
  queries, items = unit(rng, q, d), unit(rng, m, d)
  if tied:  # many items, and queries, at exactly the same place
    items = items[rng.integers(0, 6, m)]
    queries[::2] = items[0]
  gallery_id = rng.integers(-3, 12, m).astype(np.int32)  # several items of one id
  query_id = gallery_id[rng.integers(0, m, q)]
  return queries, items, query_id, gallery_id


def same(got, want):
  np.testing.assert_array_equal(got.rank, want.rank)
  np.testing.assert_array_equal(got.positives, want.positives)
  np.testing.assert_allclose(got.score, want.score, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_tiles_are_dense(mesh, tied):
  x = case(tied)
  want = gallery.search(*x, k=7)
  # 45 queries in blocks of 16, two of each device; 70 items in tiles of 16, or in one.
  for tile in (16, 1024):
    got = gallery.stream(*x, mesh=mesh, k=7, block=2, tile=tile)
    same(got, want)
    if not tied:
      np.testing.assert_array_equal(got.top, want.top)


def test_more_is_asked_for_than_a_tile_or_the_gallery_holds(mesh):
  x = case(False)
  got = gallery.stream(*x, mesh=mesh, k=100, block=2, tile=16)
  assert got.top.shape == (45, 70)
  assert (np.sort(got.top, axis=1) == np.arange(70)).all()
  same(got, gallery.search(*x, k=100))


def test_equal_items_come_in_order(mesh):
  z = np.ones((40, 1), np.float32)
  ids = np.arange(40, dtype=np.int32)
  found = gallery.stream(z, z, ids, ids, mesh=mesh, k=20, block=2, tile=16)
  np.testing.assert_array_equal(found.top, np.tile(np.arange(20), (40, 1)))
  assert (found.rank == 39).all()  # all alike: the right one comes last


@pytest.mark.parametrize("k", [1, 3, 40])
def test_top_k_in_two_steps_is_that_in_one(k):
  rng = np.random.default_rng(k)
  x = rng.integers(0, 30, (5, 1024)).astype(np.float32)  # equals in every group
  x[1] = 0
  x[2, 7:] = -np.inf
  got, want = jax.jit(lambda x: (gallery.top_k(x, k), jax.lax.top_k(x, k)))(x)
  np.testing.assert_array_equal(got[0], want[0])
  np.testing.assert_array_equal(got[1], want[1])


def test_one_device_gives_what_eight_give(mesh):
  x = case(True)
  alone = meshes.make(dict(data=1), jax.devices()[:1])
  one, eight = (
    gallery.stream(*x, mesh=m, k=7, block=b, tile=16)
    for m, b in ((alone, 16), (mesh, 2))
  )
  same(one, eight)
  np.testing.assert_array_equal(one.top, eight.top)


def test_no_device_holds_what_grows_with_the_gallery(mesh):
  """The step over a tile is one program, whatever is behind it."""
  _, visit = gallery._programs(mesh, 5, 5)
  f32, i32 = np.float32, np.int32
  s = jax.ShapeDtypeStruct
  b, tile, d = 64, 16, 4
  found = s((b,), i32), s((b, 5), i32), s((b, 5), f32)
  args = found, s((b,), f32), s((b, d), f32), s((b,), i32)
  items = s((tile, d), f32), s((tile,), i32), s((2,), i32)
  compiled = visit.lower(*args, *items).compile()
  text = compiled.as_text()
  assert not any(c in text for c in ("all-reduce", "all-gather", "all-to-all"))
  assert compiled.memory_analysis().temp_size_in_bytes < 20 * (b // 8) * (tile + 10) * 4


def test_small_galleries_are_left_to_numpy(mesh, monkeypatch):
  called = []
  monkeypatch.setattr(gallery, "stream", lambda *a, **k: called.append(k["k"]))
  same(gallery.rank(*case(False), mesh=mesh), gallery.search(*case(False)))
  assert not called
  monkeypatch.setattr(gallery, "SMALL", 45 * 70 - 1)
  gallery.rank(*case(False), mesh=mesh, k=3)
  assert called == [3]


def test_errors_are_those_of_the_dense_search(mesh):
  queries, items, query_id, gallery_id = case(False)
  with pytest.raises(ValueError, match=r"ids \[99\]"):
    lost = np.where(np.arange(45) == 7, 99, query_id)
    gallery.stream(queries, items, lost, gallery_id, mesh=mesh)
  with pytest.raises(ValueError, match="gallery embeddings hold NaN"):
    gallery.stream(queries, items * np.nan, query_id, gallery_id, mesh=mesh)
