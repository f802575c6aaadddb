"""Devices that nobody here owns: described ones, for which XLA compiles."""

from collections.abc import Mapping
import dataclasses
import os
import re

# What libtpu reads when it is loaded: ask no metadata server, take no lock, and do not
# wonder that this machine is no TPU host. JAX itself must run on the CPU.
ENVIRONMENT: Mapping[str, str] = {
  "JAX_PLATFORMS": "cpu",
  "TPU_SKIP_MDS_QUERY": "1",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-4",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "TPU_WORKER_ID": "0",
}
TPUS = ("v4", "v5e", "v5p", "v6e", "tpu7x")


@dataclasses.dataclass(frozen=True)
class Gpu:
  """What XLA's GPU compiler asks of a device, as the driver reports it.

  Attributes:
    name: JAX's device_kind.
    capability: major number.
    cores: multiprocessors, each with `units` for f32.
    clock: GHz.
    memory: bytes, with `rate` bytes/s.
    l2: bytes.
    shared: bytes of a multiprocessor's fast memory.
  """

  name: str
  capability: int
  cores: int
  units: int
  clock: float
  memory: int
  rate: int
  l2: int
  shared: int


GPUS: Mapping[str, Gpu] = {
  "a100": Gpu(
    *("NVIDIA A100-SXM4-80GB", 8, 108, 64, 1.41),
    *(85_100_068_864, 2_039_040_000_000, 41_943_040, 167_936),
  ),
  "h100": Gpu(
    *("NVIDIA H100 80GB HBM3", 9, 132, 128, 1.98),
    *(84_942_979_072, 3_352_320_000_000, 52_428_800, 233_472),
  ),
  "h200": Gpu(
    *("NVIDIA H200", 9, 132, 128, 1.98),
    *(151_397_597_184, 4_800_000_000_000, 52_428_800, 233_472),
  ),
  "b200": Gpu(
    *("NVIDIA B200", 10, 148, 128, 1.965),
    *(191_514_411_008, 7_672_320_000_000, 132_644_864, 233_472),
  ),
}
KINDS = (*TPUS, *GPUS)
EXAMPLES = "v5e:16x16 or v5p:8x8x8, h100:8 or, of 4 hosts with 8 each, h100:4x8"


def prepare() -> None:
  """Sets the environment that describing needs; call it before jax is imported."""
  os.environ.update(ENVIRONMENT)


def devices(name: str, slices: int = 1) -> list:
  """Returns the devices of `slices` slices of a topology such as "v5p:8x8x8".

  They can be compiled for, not run on. A tpu7x chip is two devices.

  Raises:
    ValueError: a name that is not kind:AxBxC of a TPU, kind:N or kind:HOSTSxN of a GPU,
      a shape that does not exist, or slices of GPUs.
    ModuleNotFoundError: the compiler for it is not installed.
  """
  tpu = re.fullmatch(rf"({'|'.join(TPUS)}):\d+(x\d+){{1,2}}", name)
  gpu = re.fullmatch(rf"({'|'.join(GPUS)}):(?:([1-9]\d*)x)?([1-9]\d*)", name)
  if gpu:
    if slices > 1:
      raise ValueError(
        f"--slices {slices} of {name}: GPUs have hosts, as in {gpu[1]}:{slices}x8"
      )
    return _gpus(GPUS[gpu[1]], int(gpu[2] or 1), int(gpu[3]))
  if not tpu:
    raise ValueError(
      f"--topology {name!r}: expected kind:AxB or kind:AxBxC of TPUs, kind:N or "
      f"kind:HOSTSxN of GPUs, kind one of {', '.join(KINDS)}, e.g. {EXAMPLES}"
    )
  from jax.experimental import topologies  # after `prepare`

  options: dict = {"num_slices": slices} if slices > 1 else {}
  if name.startswith("v4:"):  # else JAX counts each of a chip's two cores as a device
    options["chip_config_name"] = "megacore"
  try:
    described = topologies.get_topology_desc(
      platform="tpu", topology_name=name, **options
    )
  except Exception as e:  # of one type for all: what it says decides
    if "libtpu" in str(e).lower() or "not installed" in str(e):
      raise ModuleNotFoundError(
        f"describing {name} needs the TPU compiler: pip install -r "
        f"requirements-aot.txt ({e})"
      ) from e
    raise ValueError(f"--topology {name} is refused by the TPU compiler: {e}") from e
  return described.devices


def _gpus(gpu: Gpu, hosts: int, each: int) -> list:
  from jax.experimental import topologies

  try:
    return topologies.get_topology_desc(
      platform="cuda", topology=f"1x{hosts}x{each}", target_config=target(gpu)
    ).devices
  except NotImplementedError as e:
    raise ModuleNotFoundError(
      f"describing a {gpu.name} needs JAX's plugin for GPUs: pip install "
      f'"jax[cuda13]" ({e})'
    ) from e


def target(gpu: Gpu) -> str:
  """Returns the text of XLA's GpuTargetConfigProto for a GPU."""
  accelerated = "ACCELERATED_FEATURES" if gpu.capability >= 9 else "NONE"
  return f"""
gpu_device_info {{
  name: "{gpu.name}"
  device_vendor: "NVIDIA Corporation"
  cuda_compute_capability {{ major: {gpu.capability} feature_extension: {accelerated} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.units}
  clock_rate_ghz: {gpu.clock}
  device_memory_size: {gpu.memory}
  memory_bandwidth: {gpu.rate}
  l2_cache_size: {gpu.l2}
  shared_memory_per_core: {gpu.shared}
  shared_memory_per_block: 49152
  shared_memory_per_block_optin: {gpu.shared - 1024}
  threads_per_warp: 32
  threads_per_block_limit: 1024
  threads_per_core_limit: 2048
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_address_bits: 64
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.name}"
"""
