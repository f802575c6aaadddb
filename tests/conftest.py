"""Every test sees 8 CPU devices, strict dtypes and warnings as errors."""

import gc
import importlib.metadata
import os
import pathlib

# Before the first import of jax: the device count cannot change afterwards.
os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS", "cpu")
# Compilation dominates the suite. The lowest level of LLVM halves it; without the newer
# emitters of fusions, and with one LLVM module per program, a train step takes 1.8 CPU
# seconds instead of 4.5. One train.py of tests/entry runs as its users run it.
_FLAGS = [
  "--xla_force_host_platform_device_count=8",
  "--xla_backend_optimization_level=0",
  "--xla_cpu_parallel_codegen_split_count=1",
]
if importlib.metadata.version("jaxlib").startswith("0.10."):
  # Later versions have no other emitters, and end at a flag that they do not know.
  _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
for _FLAG in _FLAGS:
  if _FLAG not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAG}".strip()

import jax  # noqa: E402

_CACHE = pathlib.Path(__file__).resolve().parents[1] / ".cache" / "jax"

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Shared between tests and runs.
jax.config.update("jax_compilation_cache_dir", str(_CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)

# Tracing makes many objects that live on: looking through them takes 6% of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

# The longest files go first: one at the end would leave the other worker idle.
_LONGEST = (
  "tests/entry/",
  "tests/contract/",
  "tests/model/moe/test_train_step.py",
  "tests/training/test_step.py",
)


def pytest_collection_modifyitems(items):
  items.sort(key=lambda item: not item.nodeid.startswith(_LONGEST))
