"""What device a function is traced for, as compilers differ in what they want."""

import jax


def ambient() -> tuple[str, str]:
  """Returns (platform, kind) of the ambient mesh, else of the default device."""
  # The mesh first: a program for a TPU may be compiled where there is none.
  mesh = jax.sharding.get_abstract_mesh()
  device = getattr(mesh, "abstract_device", None) or jax.devices()[0]
  return device.platform, device.device_kind


def is_tpu() -> bool:
  """Returns whether that is a TPU."""
  return ambient()[0] == "tpu"
