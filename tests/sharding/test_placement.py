import math
import re

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from model.types import MESH_AXES
from sharding import mesh as meshes
from sharding import placement, rules

MESHES = {
  "data": {"data": 8},
  "fsdp": {"fsdp": 8},
  "expert": {"data": 2, "expert": 4},
  "tensor": {"data": 2, "fsdp": 2, "tensor": 2},
}


def init(key):
  names = {
    "stem_text/embed/embedding": (64, 16),
    "block/attention/query/kernel": (16, 4, 4),
    "block/mlp/up/kernel": (16, 64),
    "block/mlp/up/bias": (64,),
    "block/moe/experts/up/kernel": (4, 16, 64),
    "block/norm/scale": (16,),
  }
  # One draw: compiling generators is what takes the time.
  values = jax.random.uniform(key, (sum(map(math.prod, names.values())),))
  parts = jnp.split(values, np.cumsum([math.prod(s) for s in names.values()])[:-1])
  return {n: v.reshape(s) for v, (n, s) in zip(parts, names.items())}


@pytest.fixture(scope="module")
def whole():
  return jax.device_get(jax.jit(init)(jax.random.key(0)))


@pytest.mark.parametrize("name", MESHES)
def test_parameters_are_born_in_their_shards(name, whole):
  mesh = meshes.make(MESHES[name])
  layout = rules.specs(jax.eval_shape(init, jax.random.key(0)), mesh)
  params = placement.init_sharded(init, (), mesh, jax.random.key(0))
  assert jax.tree.map(lambda x: x.sharding, params) == layout
  held = dict.fromkeys(jax.devices(), 0)
  for path, array in params.items():
    np.testing.assert_array_equal(array, whole[path])  # whatever the mesh
    for shard in array.addressable_shards:
      assert shard.data.shape == layout[path].shard_shape(array.shape)
      held[shard.device] += shard.data.nbytes
  (said,) = [
    line for line in placement.explain(params, mesh).splitlines() if "total" in line
  ]
  (per_chip,) = set(held.values())
  assert f"{per_chip:,} bytes/chip" in said


def test_the_axes_save_the_memory_they_should(whole):
  total = sum(x.nbytes for x in whole.values())
  small = whole["block/norm/scale"].nbytes + whole["block/mlp/up/bias"].nbytes

  def per_chip(name):
    params = jax.eval_shape(init, jax.random.key(0))
    layout = rules.specs(params, meshes.make(MESHES[name]))
    return sum(math.prod(layout[p].shard_shape(x.shape)) * 4 for p, x in params.items())

  experts = whole["block/moe/experts/up/kernel"].nbytes
  assert per_chip("data") == total
  assert per_chip("fsdp") == (total - small) // 8 + small
  assert per_chip("expert") == total - experts + experts // 4
  scale = whole["block/norm/scale"].nbytes
  bias = whole["block/mlp/up/bias"].nbytes
  assert per_chip("tensor") == (total - small) // 4 + scale + bias // 2


def test_no_device_holds_the_whole_tree_while_initialising():
  mesh = meshes.make({"fsdp": 8})

  def big(key):
    return {"kernel": jax.random.normal(key, (1024, 1024))}

  key = jax.random.key(0)
  layout = rules.specs(jax.eval_shape(big, key), mesh)
  memory = jax.jit(big, out_shardings=layout).lower(key).compile().memory_analysis()
  used = memory.output_size_in_bytes + memory.temp_size_in_bytes
  whole = 4 * 1024 * 1024
  assert used < whole * 5 / 8  # an eighth, and three of the generator's scratch
  params = placement.init_sharded(big, layout, mesh, key)
  assert {s.data.shape for s in params["kernel"].addressable_shards} == {(128, 1024)}


def test_batches_land_split_and_whole():
  mesh = meshes.make({"data": 2, "fsdp": 2, "tensor": 2})
  host = {
    "image": np.arange(8 * 2 * 2 * 3, dtype=np.float32).reshape(8, 2, 2, 3),
    "text": np.arange(16, dtype=np.int32).reshape(8, 2),
    "valid": np.array([True] * 7 + [False]),
    "id": np.arange(8, dtype=np.int64),
  }
  batch = placement.put_batch(host, mesh)
  assert batch["id"].dtype == jnp.int32
  for name, array in host.items():
    assert batch[name].shape == array.shape
    assert batch[name].sharding == meshes.batch_sharding(mesh)
    np.testing.assert_array_equal(batch[name], array)
    for shard in batch[name].addressable_shards:
      assert shard.data.shape[0] == 2
      np.testing.assert_array_equal(shard.data, array[shard.index])


def test_bytes_become_floats_where_they_are():
  mesh = meshes.make({"data": 2, "fsdp": 2, "tensor": 2})
  image = np.random.default_rng(0).integers(0, 256, (8, 5, 4, 3), np.uint8)
  affine = np.random.default_rng(1).uniform(0.5, 2, (8, 2, 3)).astype(np.float32)
  host = {"image": image, "image_affine": affine, "id": np.arange(8, dtype=np.int32)}
  batch = placement.put_batch(host, mesh)
  assert set(batch) == {"image", "id"} and batch["image"].dtype == jnp.float32
  assert batch["image"].sharding == meshes.batch_sharding(mesh)
  scale, offset = affine[:, 0, None, None], affine[:, 1, None, None]
  np.testing.assert_allclose(batch["image"], image * scale - offset, atol=1e-4)


@pytest.mark.parametrize(
  ("batch", "message"),
  [
    (
      {"a": np.zeros((6, 2), np.float32)},
      r"batch 6 \(= 6 rows \* 1 .* = 8.*batch_size",
    ),
    (
      {"a": np.zeros(8, np.int32), "b": np.zeros(16, np.int32)},
      r"rows of a batch differ: \{'a': 8, 'b': 16\}",
    ),
    (
      {"caption": np.array(["x"] * 8)},
      r"batch\['caption'\] is <U1; expected a numeric",
    ),
    ({"a": np.float32(1) * np.ones(())}, r"expected a numeric|shape \(\)"),
    ({"id": np.full(8, 2**40)}, r"batch\['id'\] has int64 values beyond int32"),
    ({}, r"the rows of a batch differ: \{\}"),
  ],
)
def test_bad_batches(batch, message):
  with pytest.raises(ValueError, match=message):
    placement.put_batch(batch, meshes.make({"data": 8}))


@pytest.mark.parametrize(
  ("sizes", "owners", "shares"),
  [
    ((4, 1, 1, 1), [0, 0, 1, 1], [(0, 2), (1, 2)]),
    ((2, 1, 2, 1), [0, 1, 0, 1], [(0, 2), (1, 2)]),
    # Two processes of two chips share the rows of one tensor-parallel group.
    ((2, 1, 1, 4), [0, 0, 1, 1, 2, 2, 3, 3], [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ((1, 1, 1, 2), [0, 1], [(0, 1), (0, 1)]),
    ((2, 1, 1, 1), [1, 0], [(1, 2), (0, 2)]),
  ],
)
def test_share_of_each_process(sizes, owners, shares):
  owners = np.array(owners).reshape(sizes)
  assert [placement.share(owners, p) for p in range(len(shares))] == shares


def test_overlapping_shares_raise():
  owners = np.array([0, 1, 1, 2, 0, 2]).reshape(3, 1, 1, 2)
  with pytest.raises(ValueError, match=r"overlapping .* Set config\.mesh\.tensor"):
    placement.share(owners, 0)


def test_one_process_loads_everything():
  assert placement.data_shard(meshes.make({"data": 8})) == (0, 1)


def test_explain_on_a_pod_that_is_not_here():
  mesh = AbstractMesh(
    (4, 4, 2, 2), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES)
  )
  tree = {
    "block": {
      "mlp": {
        "up": {
          "bias": jax.ShapeDtypeStruct((5,), jnp.float32),
          "kernel": jax.ShapeDtypeStruct((16, 64), jnp.bfloat16),
        }
      },
      "moe": {"experts": {"up": {"kernel": jax.ShapeDtypeStruct((4, 6, 8), "f4")}}},
    },
    "temperature": jax.ShapeDtypeStruct((), jnp.float32),
  }
  lines = placement.explain(tree, mesh, [("temp.*", ())]).splitlines()
  assert [re.split("  +", line) for line in lines] == [
    ["path", "shape", "dtype", "rule", "spec", "bytes/chip", "notes"],
    [
      *("block/mlp/up/bias", "5", "float32", "mlp/up/bias", "replicated", "20"),
      "tensor replicated: 5 % 2",
    ],
    ["block/mlp/up/kernel", "16x64", "bfloat16", "mlp/up/kernel", "fsdp,tensor", "256"],
    [
      *("block/moe/experts/up/kernel", "4x6x8", "float32", "moe/experts/up/kernel"),
      *("expert,-,tensor", "192", "fsdp replicated: 6 % 4"),
    ],
    ["temperature", "()", "float32", "temp.*", "replicated", "4"],
    [
      "total: 1,222 parameters, 2,840 bytes, 472 bytes/chip on 64 chips "
      "(data=4 fsdp=4 expert=2 tensor=2)"
    ],
  ]
  column = lines[0].index("bytes/chip")
  assert [line[column:].split()[0] for line in lines[1:-1]] == ["20", "256", "192", "4"]


def test_explain_merges_equal_blocks():
  tree = {
    f"block_{i:02}": {"mlp": {"up": {"kernel": jnp.zeros((16, 32 if i else 64))}}}
    for i in range(4)
  }
  lines = placement.explain(tree, meshes.make({"fsdp": 8}), merge=True).splitlines()
  assert [line.split()[0] for line in lines] == [
    *("path", "block_00/mlp/up/kernel", "block_*/mlp/up/kernel", "total:")
  ]
  assert lines[2].split()[1:3] == ["(3)", "16x32"]
  assert lines[2].split()[-1] == f"{3 * 2 * 32 * 4}"


def test_explain_spells_axes_that_share_a_dimension():
  text = placement.explain(
    {"queue": jnp.zeros((16, 8))},
    meshes.make({"fsdp": 4, "tensor": 2}),
    [("queue", (("fsdp", "tensor"), None))],
  )
  assert "fsdp+tensor" in text
  assert str(P(("fsdp", "tensor"))) not in text
