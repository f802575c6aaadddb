import pytest

from training import chips


@pytest.mark.parametrize(
  ("kind", "tera"),
  [
    ("TPU v4", 275),
    ("TPU v5 lite", 197),
    ("TPU v5e", 197),
    ("TPU v5", 459),
    ("TPU v5p", 459),
    ("TPU v6 lite", 918),
    ("TPU7x", 1153.5),
    ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA H100 PCIe", 756),
    ("NVIDIA H200", 989),
    ("NVIDIA GH200 480GB", 989),
    ("NVIDIA B200", 2250),
    ("NVIDIA A100-SXM4-40GB", 312),
    ("cpu", None),
    ("NVIDIA GeForce RTX 4090", None),
  ],
)
def test_peaks(kind, tera):
  assert chips.peak_flops(kind) == (tera and tera * 1e12)


@pytest.mark.parametrize(
  ("kind", "hbm", "both_ways"),
  [
    # What the compiler said it has, and the data sheet's interconnect per chip.
    ("TPU v4", 30.75, 600e9),
    ("TPU v5 lite", 15.75, 400e9),
    ("TPU v5", 95.73, 1200e9),
    ("TPU v6 lite", 31.24, 800e9),
    ("TPU7x", 94.74, 600e9),  # of a device, half a chip
  ],
)
def test_memory_and_links_of_tpus(kind, hbm, both_ways):
  chip = chips.find(kind)
  assert chip.hbm == int(hbm * 2**30)
  assert 2 * chip.torus * chip.link * 2 == both_ways
  assert chip.hbm_rate > 0 and chip.network > 0


@pytest.mark.parametrize(
  ("kind", "gib", "nvlink"),
  [
    ("NVIDIA A100-SXM4-80GB", 80, 600e9),
    ("NVIDIA H100 80GB HBM3", 80, 900e9),
    ("NVIDIA H200", 141, 900e9),
    ("NVIDIA B200", 180, 1800e9),
  ],
)
def test_memory_and_links_of_gpus(kind, gib, nvlink):
  chip = chips.find(kind)
  assert 0.97 * gib < chip.hbm / 0.75 / 2**30 < gib + 1
  assert 2 * chip.link == nvlink and not chip.torus
  assert chip.hbm_rate > 0 and chip.network > 0
