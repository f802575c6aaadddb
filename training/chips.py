"""What one device of a kind can do: matrix peak, memory, links. The only such table.

Sources. Matrix peak, HBM bandwidth and links of TPUs: the "system architecture" tables
of cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}. They give interconnect per chip in
both directions together (v5e 400, v5p 1200, v6e 800, tpu7x 1200 GB/s); here it is one
direction of one link: half of that over 4 links (2-D torus) or 6 (3-D). v4's links are
50 GB/s (arXiv 2304.01433, section 2). Data-centre network per chip: v5p 50, v6e and
tpu7x 100 Gb/s; v5e 6.4 Tb/s over 256 chips; v4 is assumed to be as v5p. HBM is what the
TPU compiler allows a program, somewhat less than the capacity on the data sheet.
GPU figures are the vendor's data sheets' without sparsity; NVLink and the network, one
direction, as in DGX and HGX systems of eight: a network card per GPU, of 200 Gb/s with
A100 and 400 Gb/s since. Their HBM is the three quarters that JAX takes unless
XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise. What JAX calls a device is half a chip
for v2, v3 and tpu7x: their figures per chip are halved.
"""

import dataclasses
import re


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One device, as JAX counts them.

  Attributes:
    kind: regex that `device_kind` starts with.
    flops: dense bf16 FLOP/s.
    hbm: bytes that a program may use; 0 where it is not known, as the rest.
    hbm_rate: bytes/s between memory and chip.
    torus: dimensions of the interconnect; each has two links. 0: the devices of a host
      are joined by a switch.
    link: bytes/s of one link, or of a device and its switch, in one direction.
    network: bytes/s per device between slices or hosts, in one direction.
  """

  kind: str
  flops: float
  hbm: int = 0
  hbm_rate: float = 0.0
  torus: int = 0
  link: float = 0.0
  network: float = 0.0


def _gib(size: float) -> int:
  return int(size * 2**30)


def _gpu(
  kind: str, tera: float, mib: int, rate: float, link: float, network: float
) -> Chip:
  """mib: of memory, as the driver says; rates in GB/s."""
  return Chip(
    kind=kind,
    flops=tera * 1e12,
    hbm=int(0.75 * mib * 2**20),
    hbm_rate=rate * 1e9,
    link=link * 1e9,
    network=network * 1e9,
  )


# The first match counts.
CHIPS = (
  Chip(kind=r"TPU v2", flops=45e12 / 2),
  Chip(kind=r"TPU v3", flops=123e12 / 2),
  Chip(kind=r"TPU v4 lite|TPU v4i", flops=138e12),
  Chip(
    kind=r"TPU v4",
    flops=275e12,
    hbm=_gib(30.75),
    hbm_rate=1200e9,
    torus=3,
    link=50e9,
    network=6.25e9,
  ),
  Chip(
    kind=r"TPU v5 ?lite|TPU v5e",
    flops=197e12,
    hbm=_gib(15.75),
    hbm_rate=819e9,
    torus=2,
    link=50e9,
    network=3.125e9,
  ),
  Chip(
    kind=r"TPU v5p?",
    flops=459e12,
    hbm=_gib(95.73),
    hbm_rate=2765e9,
    torus=3,
    link=100e9,
    network=6.25e9,
  ),
  Chip(
    kind=r"TPU v6 ?lite|TPU v6e",
    flops=918e12,
    hbm=_gib(31.24),
    hbm_rate=1638e9,
    torus=2,
    link=100e9,
    network=12.5e9,
  ),
  Chip(
    kind=r"TPU ?v?7x?",
    flops=2307e12 / 2,
    hbm=_gib(94.74),
    hbm_rate=7380e9 / 2,
    torus=3,
    link=100e9 / 2,
    network=12.5e9 / 2,
  ),
  Chip(kind=r".*\bGH200", flops=989e12),
  _gpu(r".*\bB200", 2250, 182_642, 8000, 900, 50),
  _gpu(r".*\bH200", 989, 144_384, 4800, 450, 50),
  Chip(kind=r".*\bH100 PCIe", flops=756e12),
  Chip(kind=r".*\bH100 NVL", flops=835e12),
  _gpu(r".*\bH100", 989, 81_008, 3350, 450, 50),
  _gpu(r".*\bA100.*80GB", 312, 81_158, 2039, 300, 25),
  Chip(kind=r".*\bA100", flops=312e12),
  Chip(kind=r".*\bL4\b", flops=121e12),
)


def find(device_kind: str) -> Chip | None:
  """Returns the figures of `jax.devices()[0].device_kind`; None if it is not known."""
  for chip in CHIPS:
    if re.match(chip.kind, device_kind, re.IGNORECASE):
      return chip
  return None


def peak_flops(device_kind: str) -> float | None:
  """Returns the dense bf16 FLOP/s of one device; None for a kind that is not known."""
  chip = find(device_kind)
  return chip.flops if chip else None
