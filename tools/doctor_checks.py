"""The checks of tools/doctor.py: each returns what it found, or raises what to do."""

import glob
import importlib.metadata
import math
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time
from typing import Any

from absl import flags
from etils import epath
import jax
from ml_collections import config_flags
import numpy as np

from input_pipeline import pipeline
from model.encoders import count
from sharding import distributed, placement
from tools import aot_step
from tools.doctor import INSTALL, THOROUGH, Warn
from training import checkpoint, chips, environment, errors, evaluation
from training import setup as setup_lib

Found = dict[str, Any]
GIB = 2**30
PYTHON = (3, 11)
_STEPS = 4  # measured, after one that warms up
_BATCHES = 6  # measured, after one that fills the threads


def settings(found: Found) -> str:
  """The flags and the recipe."""
  values = flags.FlagValues()
  config = config_flags.DEFINE_config_file(
    "config", None, "Recipe.", lock_config=True, flag_values=values
  )
  workdir = flags.DEFINE_string("workdir", None, "As of train.py.", flag_values=values)
  quick = flags.DEFINE_bool(
    "quick", False, "Nothing that compiles.", flag_values=values
  )
  with errors.parsing():
    left = values(sys.argv)[1:]
    if left:
      raise flags.Error(f"unexpected arguments {left}: did you mean --{left[0]}?")
    if config.value is None or not workdir.value:
      raise flags.Error("--config and --workdir are needed, as of train.py")
  found["settings"], found["workdir"] = config.value, workdir.value
  if not quick.value:
    found[THOROUGH] = True
  return f"{config.value.name}, {config.value.total_steps} steps in {workdir.value}"


def versions(found: Found) -> str:
  """Python and the packages, and whether JAX's parts belong together."""
  del found
  if sys.version_info < PYTHON:
    raise ValueError(
      f"Python {platform.python_version()}: expected {'.'.join(map(str, PYTHON))} or "
      "newer. Make another environment."
    )
  known = {p: _version(p) for p in environment.PACKAGES}
  if missing := [p for p, v in known.items() if not v]:
    raise ValueError(f"not installed: {', '.join(missing)}. {INSTALL}")
  text = f"Python {platform.python_version()}, " + ", ".join(
    f"{p} {v}" for p, v in known.items()
  )
  release = _release(known["jax"])
  plugins = ("jaxlib", "jax-cuda12-plugin", "jax-cuda13-plugin")
  for package in plugins:
    version = _version(package)
    if version and _release(version) != release:
      raise Warn(
        f"jax {known['jax']} with {package} {version}: their releases differ. Install "
        f"them together, e.g. pip install -U jax=={known['jax']}"
      )
  return text


def hosts(found: Found) -> str:
  """Whether the processes meet."""
  wanted = found["settings"].hosts
  distributed.initialize(wanted.join_s, wanted.lost_s)
  found["hosts"] = jax.process_count()
  if jax.process_count() == 1:
    return "one process"
  return f"process {jax.process_index()} of {jax.process_count()}"


def devices(found: Found) -> str:
  """The accelerators, and whether JAX sees those that are there."""
  kind = jax.devices()[0].device_kind
  found["devices"] = kind
  text = f"{jax.device_count()} x {kind}"
  if jax.process_count() > 1:
    text += f", {jax.local_device_count()} of them here"
  if jax.default_backend() == "cpu":
    for what, extra, paths in (
      ("an NVIDIA GPU", "cuda13", "/dev/nvidia[0-9]*"),
      ("a TPU", "tpu", "/dev/accel*"),
    ):
      if glob.glob(paths):
        raise Warn(
          f"{text}, but this machine has {what}: pip install 'jax[{extra}]', and look "
          f"at JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')!r}"
        )
  return text


def workdir(found: Found) -> str:
  """Whether the workdir can be written; leaves it as it was."""
  path = epath.Path(found["workdir"])
  there = path.exists()
  with errors.settings():
    checkpoint.check_workdir(found["workdir"])
  steps = sorted(p.name for p in path.glob("checkpoints/step_*"))
  if not there:
    path.rmdir()
  found["writable"] = True
  if steps:
    return f"{found['workdir']} is writable; a run there will resume from {steps[-1]}"
  return f"{found['workdir']} is writable{'' if there else ', and new'}"


def batch(found: Found) -> str:
  """Whether recipe, mesh and processes fit each other."""
  config = found["settings"]
  setup = setup_lib.build(config)
  index, shares = placement.data_shard(setup.mesh)
  if config.batch_size % shares:
    raise ValueError(
      f"batch {config.batch_size} is not divisible by the {shares} processes that load "
      "data: set config.batch_size to a multiple"
    )
  found["mesh"], found["share"] = setup, (index, shares)
  axes = ", ".join(f"{k}={v}" for k, v in setup.mesh.shape.items())
  each = config.batch_size // math.prod(list(setup.mesh.shape.values())[:3])
  return f"{config.batch_size} examples, {each} a device, on mesh {axes}"


def data(found: Found) -> str:
  """Whether a batch can be read and transformed, tokenizer included."""
  with tempfile.TemporaryDirectory() as folder:
    # Elsewhere: a tokenizer of data that is yet to be mended must not stay.
    given = found["settings"].data.tokenizer
    here = found["workdir"] if _exists(given, found["workdir"]) else folder
    config = pipeline.prepare(found["settings"], here)
    index, shares = found["share"]
    loader = pipeline.train_loader(config, process_index=index, process_count=shares)
    try:
      first = next(loader)
      began = time.perf_counter()
      for _ in range(_BATCHES if THOROUGH in found else 0):
        next(loader)
      seconds = (time.perf_counter() - began) / _BATCHES
    finally:
      loader.close()
    found["batch"], found["batch_s"] = first, seconds
    evaluators = evaluation.build(setup_lib.build(config), "")
  examples = len(pipeline.source(config))
  text = f"{examples} examples of {config.data.source!r}, {len(evaluators)} evaluators"
  if loader.dropped:
    raise Warn(f"{text}; of the first batches dropped out: {loader.dropped}")
  if examples < config.batch_size:
    raise Warn(
      f"{text}: fewer than config.batch_size = {config.batch_size}, so that a batch "
      "holds an example more than once, as a negative of itself"
    )
  return text


def step(found: Found) -> str:
  """Whether one step can be traced; nothing is computed."""
  setup = found["mesh"]
  state = setup.abstract_state()
  if "batch" in found:
    with jax.set_mesh(setup.mesh):
      rows = setup.put(found["batch"])
      found["step"] = setup.train_step().lower(state, rows)
  else:
    found["step"] = aot_step.lower(setup)
  sizes = [x.size for x in jax.tree.leaves(state.params)]
  held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(_arrays(state)))
  found["state_bytes"] = held
  flops = sum(count.flops_per_example(setup.config.model).values())
  return (
    f"{sum(sizes):,} parameters, a checkpoint of {held / GIB:.2f} GiB, "
    f"{3 * flops * setup.config.batch_size / 1e9:,.3g} GFLOP a step"
  )


def disk(found: Found) -> str:
  """Whether the checkpoints that are kept have room."""
  if "://" in found["workdir"]:
    return "a bucket"
  keep = found["settings"].checkpoint.keep + bool(found["settings"].checkpoint.best)
  needed = found["state_bytes"] * (keep + 1)  # one more is written before one goes
  path = pathlib.Path(found["workdir"]).absolute()
  while not path.exists():
    path = path.parent
  free = shutil.disk_usage(path).free
  text = f"{free / GIB:.1f} GiB free, {needed / GIB:.2f} GiB of checkpoints at most"
  if free < needed:
    raise ValueError(
      f"{text}: free some, lower config.checkpoint.keep, or give another --workdir"
    )
  return text


def memory(found: Found) -> str:
  """What the compiler says that a step needs, against what a device has."""
  began = time.monotonic()
  compiled = found["step"].compile()
  seconds = time.monotonic() - began
  found["compiled"] = compiled
  analysis = compiled.memory_analysis()
  if analysis is None:
    raise Warn("this backend does not tell: look at hbm_peak_gib in metrics.jsonl")
  needed = (
    analysis.argument_size_in_bytes
    + analysis.output_size_in_bytes
    - analysis.alias_size_in_bytes
    + analysis.temp_size_in_bytes
  )
  limit = device_limit()
  text = f"{needed / GIB:.2f} GiB a device, compiled in {seconds:.0f} s"
  if limit is None:
    raise Warn(f"{text}; how much a {found['devices']} has is not known")
  text = (
    f"{needed / GIB:.2f} of {limit / GIB:.1f} GiB a device, {seconds:.0f} s to compile"
  )
  less = (
    "raise config.microbatches, set config.model.remat = 'full', or split parameters "
    "over devices by config.mesh.fsdp"
  )
  if needed > limit:
    raise ValueError(f"{text}: {less}")
  if needed > 0.9 * limit:
    raise Warn(f"{text}: little is left for batches to come; {less}")
  return text


def device_limit() -> float | None:
  """Returns the bytes that a program may use on a device; of a CPU its share of RAM."""
  stats = jax.local_devices()[0].memory_stats() or {}
  if "bytes_limit" in stats:
    return stats["bytes_limit"]
  if jax.default_backend() == "cpu":
    return _available() / jax.local_device_count()
  chip = chips.find(jax.devices()[0].device_kind)
  return float(chip.hbm) if chip and chip.hbm else None


def speed(found: Found) -> str:
  """The time of a few steps against that of a few batches."""
  setup = found["mesh"]
  with jax.set_mesh(setup.mesh):
    state = setup.init_state()
    rows = setup.put(found["batch"])
    state, values = found["compiled"](state, rows)
    jax.block_until_ready(values)
    began = time.perf_counter()
    for _ in range(_STEPS):
      state, values = found["compiled"](state, rows)
    loss = float(np.asarray(jax.device_get(values["loss"])))
    seconds = (time.perf_counter() - began) / _STEPS
  if not math.isfinite(loss):
    raise ValueError(
      f"the loss is {loss} after {_STEPS + 1} steps on one batch: lower "
      "config.optimizer.lr, or look at the data"
    )
  return faster(seconds, found["batch_s"])


def faster(step_s: float, batch_s: float) -> str:
  """Returns that the loader keeps up, or raises `Warn` with how much it costs."""
  text = f"a batch takes {batch_s * 1e3:.0f} ms, a step {step_s * 1e3:.0f} ms"
  if batch_s > step_s:
    share = 1 - step_s / batch_s
    raise Warn(
      f"{text}: the devices would wait {share:.0%} of the time. Raise "
      f"config.data.threads or config.data.workers (this host has {os.cpu_count()} "
      "cores), or prepare the data with tools.prepare_data"
    )
  return f"{text}: the loader keeps up"


def _arrays(state: Any) -> Any:
  """Returns a state without its key, whose dtype has no size."""
  return [x for x in jax.tree.leaves(state) if hasattr(x.dtype, "itemsize")]


def _available() -> float:
  """Returns the bytes of memory that programs may still take."""
  try:
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
      if line.startswith("MemAvailable:"):
        return int(line.split()[1]) * 1024.0
  except OSError:
    pass
  return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _exists(path: str, workdir: str) -> bool:
  return bool(path) and epath.Path(path.replace("{workdir}", workdir)).exists()


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ""


def _release(version: str) -> list[str]:
  return version.split(".")[:2]


# (name, check, what of the checks above it needs)
CHECKS = (
  ("versions", versions, ()),
  ("settings", settings, ()),
  ("hosts", hosts, ("settings",)),
  ("devices", devices, ("hosts",)),
  ("workdir", workdir, ("workdir",)),
  ("batch", batch, ("devices",)),
  ("data", data, ("mesh",)),
  ("step", step, ("mesh",)),
  ("disk", disk, ("state_bytes", "writable")),
  ("memory", memory, ("step", THOROUGH)),
  ("speed", speed, ("compiled", "batch", THOROUGH)),
)
