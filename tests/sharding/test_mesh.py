import dataclasses

import jax
from jax.sharding import AxisType, PartitionSpec
import pytest

from configs import base
from model.types import MESH_AXES
from sharding import mesh as meshes


def test_base_config_puts_all_devices_on_data():
  mesh = meshes.make(base.get_config().mesh)
  assert dict(mesh.shape) == {"data": 8, "fsdp": 1, "expert": 1, "tensor": 1}
  assert mesh.axis_names == MESH_AXES
  assert set(mesh.axis_types) == {AxisType.Auto}
  assert set(mesh.devices.flat) == set(jax.devices())


@pytest.mark.parametrize("axis", MESH_AXES)
def test_minus_one_is_what_is_left(axis):
  sizes = dict.fromkeys(MESH_AXES, 1) | {"data": 2, "tensor": 2} | {axis: -1}
  left = 8 // meshes.math.prod(v for v in sizes.values() if v > 0)
  assert meshes.make(sizes).shape[axis] == left


def test_a_subset_of_devices():
  mesh = meshes.make({"fsdp": 2}, jax.devices()[:2])
  assert mesh.size == 2
  assert mesh.shape["fsdp"] == 2


@pytest.mark.parametrize(
  ("config", "message"),
  [
    (
      {"data": 3, "fsdp": 2},
      r"mesh data=3 fsdp=2 expert=1 tensor=1 = 6 does not divide 8 devices\. "
      r"Set config\.mesh .* 8, or set one of them to -1",
    ),
    ({"data": -1, "fsdp": 3}, r"fsdp=3 .* = 3 does not divide 8 devices"),
    ({"data": 4}, r"= 4 uses only a part of the 8 devices"),
    ({"data": -1, "fsdp": -1}, r"only one axis can be -1\. Set config\.mesh\.fsdp"),
    ({"data": 0}, r"data=0 is no number of devices"),
    ({"data": 8, "tensr": 1}, r"config\.mesh\.tensr: did you mean tensor\?"),
  ],
)
def test_errors_show_the_arithmetic(config, message):
  with pytest.raises(ValueError, match=message):
    meshes.make(config)


@dataclasses.dataclass(frozen=True)
class Chip:
  id: int
  slice_index: int
  process_index: int = 0
  platform: str = "tpu"
  core_on_chip: int = 0
  device_kind: str = "TPU v5 lite"

  @property
  def coords(self):  # 2 x 2 chips in each slice
    return (self.id // 2 % 2, self.id // 4, 0)


@pytest.mark.parametrize(
  "sizes", [(4, 2, 1, 1), (1, 8, 1, 1), (2, 2, 1, 2), (1, 1, 2, 4)]
)
def test_slices_meet_on_the_outermost_axis_that_can_hold_them(sizes):
  # Interleaved on purpose: the order of the devices must not decide.
  chips = [Chip(id=i, slice_index=i % 2) for i in range(8)]
  grid = meshes.arrange(sizes, chips)
  assert grid.shape == sizes
  assert {c.id for c in grid.flat} == set(range(8))
  rows = grid.reshape(2, 4)
  assert [{c.slice_index for c in row} for row in rows] == [{0}, {1}]


def test_batch_is_split_over_data_fsdp_expert():
  mesh = meshes.make({"data": 2, "fsdp": 2, "tensor": 2})
  sharding = meshes.batch_sharding(mesh)
  assert sharding.spec == PartitionSpec(("data", "fsdp", "expert"))
  assert sharding.shard_shape((16, 3)) == (4, 3)
  assert meshes.batch_shards(mesh) == 4
  assert meshes.replicated(mesh).shard_shape((16, 3)) == (16, 3)


def test_check_batch_accepts_what_splits():
  mesh = meshes.make({"data": 2, "fsdp": 2, "expert": 2})
  meshes.check_batch(64, mesh)
  meshes.check_batch(64, mesh, microbatches=4, group=2)


@pytest.mark.parametrize(
  ("batch", "options", "message"),
  [
    (
      4095,
      {},
      r"batch 4095 is not divisible by data\*fsdp\*expert = 2\*2\*1 = 4 "
      r"\(4095 % 4 = 3\)\. Set config\.batch_size to 4092 or 4096",
    ),
    (3, {}, r"Set config\.batch_size to 4, or change config\.mesh"),
    (0, {}, r"batch 0 is empty"),
    (24, {"microbatches": 4}, r"config\.microbatches to a divisor of 24 / 4 = 6"),
    (24, {"microbatches": 0}, r"cannot be split into microbatches = 0"),
    (
      48,
      {"microbatches": 2, "group": 4},
      r"batch 48 / microbatches 2 / shards 4 = 6 examples, .* groups of 4\. "
      r"Set config\.model\.moe\.group to a divisor of 6, .* multiple of 32",
    ),
    (24, {"group": 0}, r"= 6 examples, which are not whole routing groups of 0"),
  ],
)
def test_check_batch_errors(batch, options, message):
  mesh = meshes.make({"data": 2, "fsdp": 2, "tensor": 2})
  with pytest.raises(ValueError, match=message):
    meshes.check_batch(batch, mesh, **options)
