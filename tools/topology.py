"""TPU topologies that nobody here owns: described devices, for which XLA compiles."""

from collections.abc import Mapping
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
KINDS = ("v4", "v5e", "v5p", "v6e", "tpu7x")


def prepare() -> None:
  """Sets the environment that describing needs; call it before jax is imported."""
  os.environ.update(ENVIRONMENT)


def devices(name: str, slices: int = 1) -> list:
  """Returns the devices of `slices` slices of a topology such as "v5p:8x8x8".

  They can be compiled for, not run on. A tpu7x chip is two devices.

  Raises:
    ValueError: a name that is not kind:AxBxC, or a shape that does not exist.
    RuntimeError: libtpu is not installed.
  """
  if not re.fullmatch(rf"({'|'.join(KINDS)}):\d+(x\d+){{1,2}}", name):
    raise ValueError(
      f"--topology {name!r}: expected kind:AxB or kind:AxBxC, kind one of "
      f"{', '.join(KINDS)}, e.g. v5e:16x16 or v5p:8x8x8"
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
    if "libtpu" in str(e).lower():
      raise RuntimeError(
        f"describing {name} needs the TPU compiler: pip install -r "
        f"requirements-aot.txt ({e})"
      ) from e
    raise ValueError(f"--topology {name} is refused by the TPU compiler: {e}") from e
  return described.devices
