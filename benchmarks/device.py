"""A train step, compiled and ready to be timed, and the ceiling of its device."""

from collections.abc import Callable, Mapping
import time
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from benchmarks import turns
from model.encoders import count
from training import chips, environment
from training import setup as setup_lib


def matmul_flops(dtype: str, size: int) -> float:
  """Returns the FLOP/s of a product of two square matrices; see `turns.best`."""
  x = jax.random.normal(jax.random.key(0), (size, size), jnp.dtype(dtype))
  product = jax.jit(lambda x: x @ x)

  def step() -> Callable:
    y = product(x)
    return lambda: jax.block_until_ready(y)

  return 2 * size**3 / turns.best(step, jax.default_backend() == "cpu")


def batch_of(config: ConfigDict) -> dict[str, np.ndarray]:
  """Returns random pixels and ids, every text as long as it can be.

  The last id of the vocabulary ends each text and stands nowhere else: what CLIP pools.
  """
  rng = np.random.default_rng(0)
  b, m = config.batch_size, config.model.modalities
  text = rng.integers(1, m.text.vocab - 1, (b, m.text.length), np.int32)
  text[:, -1] = m.text.vocab - 1
  image = rng.standard_normal((b, *m.image.size), np.float32)
  return {"image": image, "text": text, "text_mask": np.ones(text.shape, bool)}


class Step:
  """The train step of `training.step`, on one device, with its own state.

  Attributes:
    facts: sizes, FLOPs and what the compiler says.
    metrics: of the last step.
  """

  def __init__(self, config: ConfigDict, batch: Mapping[str, np.ndarray]):
    """Compiles it.

    Args:
      config: a whole config.
      batch: of its batch_size; put on the device once.

    Raises:
      ValueError: a config that cannot be, such as a dispatch that this device lacks.
    """
    self._setup = setup_lib.build(config, devices=jax.devices()[:1])
    with jax.set_mesh(self._setup.mesh):
      self._state = self._setup.init_state()
      self._batch = self._setup.put(batch)
      start = time.perf_counter()
      self._step = self._setup.train_step().lower(self._state, self._batch).compile()
    self.metrics: Mapping[str, Any] = {}
    self.facts = self._facts(config, time.perf_counter() - start)

  def __call__(self) -> Callable[[], Any]:
    """Starts a step; returns a function that waits for its end."""
    self._state, self.metrics = self._step(self._state, self._batch)
    return lambda: jax.block_until_ready((self._state, self.metrics))

  def text(self) -> str:
    """Returns the compiled program."""
    return self._step.as_text() or ""

  def _facts(self, config: ConfigDict, seconds: float) -> dict[str, Any]:
    model = config.model
    useful = count.flops_per_example(model)
    computed = count.flops_per_example(model, capacity=True)
    params = sum(x.size for x in jax.tree.leaves(self._state.params))
    facts: dict[str, Any] = dict(
      parameters=params,
      active_parameters=params + _idle(model),
      # Three times the forward pass, as always; what is recomputed does not count.
      gflops_per_example=round(3e-9 * sum(useful.values()), 4),
      gflops_per_example_with_empty_slots=round(3e-9 * sum(computed.values()), 4),
      compile_seconds=round(seconds, 1),
    )
    cost, memory = self._step.cost_analysis(), self._step.memory_analysis()
    if cost and not model.scan:  # the body of a scan is counted once
      facts["xla_gflops_per_example"] = round(
        1e-9 * cost["flops"] / config.batch_size, 4
      )
    if memory:
      facts["temp_mib"] = round(memory.temp_size_in_bytes / 2**20, 1)
    return facts


def _idle(model: ConfigDict) -> int:
  table = count.parameter_table(model)
  return table.active - table.total


def describe() -> dict[str, Any]:
  """Returns device, versions, and what the data sheet says that the device can do.

  `cores` is 0 where the device is no CPU.
  """
  about, first = environment.describe(), jax.devices()[0]
  found = dict(device=about["device"], versions=about["versions"], cores=0)
  if first.platform == "cpu":
    found |= dict(device=turns.processor(), cores=turns.cores())
  peak = chips.peak_flops(first.device_kind)
  return found | ({"data_sheet_tflops": peak / 1e12} if peak else {})


def peak_memory() -> dict[str, float]:
  """Returns {"peak_gib"} of this process on its device, where the device tells it."""
  stats = jax.devices()[0].memory_stats() or {}
  peak = stats.get("peak_bytes_in_use")
  return {"peak_gib": round(peak / 2**30, 2)} if peak else {}
