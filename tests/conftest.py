"""Every test sees 8 CPU devices, strict dtypes and warnings as errors."""

import os
import pathlib

# Before the first import of jax: the device count cannot change afterwards.
os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
# Compilation dominates the suite: the lowest level of LLVM halves it. The train.py of
# tests/entry runs as its users run it.
for _FLAG in (
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=0",
):
  if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

import jax  # noqa: E402

_CACHE = pathlib.Path(__file__).resolve().parents[1] / ".cache" / "jax"

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Shared between tests and runs.
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
