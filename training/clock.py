"""How fast training runs: step time, waiting for data, MFU, device memory."""

from collections.abc import Callable, Iterator
import contextlib
import math
import time
from typing import Any

import jax

from model.encoders import count
from training.chips import peak_flops


class StepClock:
  """Measures steps between two laps, without what is neither step nor data.

  One `with clock.waiting():` per step encloses the wait for its batch; evaluation and
  checkpoints go into `with clock.paused():`. Read it once the device has caught up:
  steps are dispatched ahead.
  """

  def __init__(self, now: Callable[[], float] = time.perf_counter):
    self._now = now
    self.start()

  def start(self) -> None:
    """Begins a lap; what came before, such as compiling, does not count."""
    self._since = self._now()
    self._waited = self._away = 0.0
    self._steps = 0

  @contextlib.contextmanager
  def waiting(self) -> Iterator[None]:
    """Encloses the wait for the batch of one step."""
    began = self._now()
    try:
      yield
    finally:
      self._waited += self._now() - began
      self._steps += 1

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Encloses what is no part of a step."""
    began = self._now()
    try:
      yield
    finally:
      self._away += self._now() - began

  def lap(self, batch_size: int, flops: float | None = None) -> dict[str, float]:
    """Returns the figures since the last lap, and begins the next.

    Args:
      batch_size: global examples of a step.
      flops: of a step on all devices together; None leaves out `mfu` and
        `tflops_per_s_per_chip`.

    Returns:
      step_seconds; data_wait, the share of the time in [0, 1] that the devices stood
      without a batch, as the host sees it; examples_per_s; examples_per_s_per_chip; and
      where it is known mfu in [0, 1].

    Raises:
      ValueError: no step since the last lap.
    """
    if not self._steps:
      raise ValueError("no step since the last lap: nothing to measure")
    # A clock may stand still for a very short lap.
    seconds = max(self._now() - self._since - self._away, 1e-9)
    each = seconds / self._steps
    chips, kind = jax.device_count(), jax.devices()[0].device_kind
    out = {
      "step_seconds": each,
      "data_wait": min(self._waited / seconds, 1.0),
      "examples_per_s": batch_size / each,
      "examples_per_s_per_chip": batch_size / each / chips,
    }
    if flops:
      out["tflops_per_s_per_chip"] = flops / each / chips / 1e12
      share = mfu(flops, each, kind, chips)
      if share is not None:
        out["mfu"] = share
    self.start()
    return out


def mfu(
  flops_per_step: float, seconds: float, device_kind: str, n: int
) -> float | None:
  """Returns the model FLOP/s utilisation in [0, 1] (arXiv 2204.02311, appendix B).

  Args:
    flops_per_step: of all devices together.
    seconds: of one step.
    device_kind: `jax.devices()[0].device_kind`.
    n: devices.

  Returns:
    The share of the bf16 peak, whatever the precision; None where the peak is not
    known, as on CPU.
  """
  peak = peak_flops(device_kind)
  return None if peak is None else flops_per_step / (seconds * n * peak)


def step_flops(compiled: Any, config: Any) -> float | None:
  """Returns the FLOPs of one step on all devices, to be passed to `lap`.

  The compiler's own count, unless the program holds a loop (whose body the compiler
  counts once), recomputes activations (which is no use of the model) or runs on a GPU
  (whose products are calls of a library, which it does not count): then the count of
  `model_flops`.

  Args:
    compiled: `jax.jit(step).lower(...).compile()`.
    config: the whole recipe.
  """
  looped = config.model.scan or config.microbatches > 1
  if looped or config.model.remat != "none" or jax.default_backend() == "gpu":
    return model_flops(config)
  try:
    cost = compiled.cost_analysis()
  except (NotImplementedError, RuntimeError):  # a backend without an analysis
    cost = None
  cost = cost[0] if isinstance(cost, list | tuple) and cost else cost
  flops = float((cost or {}).get("flops", 0.0))
  # One partition's program: every device runs the same.
  return flops * jax.device_count() if flops > 0 else model_flops(config)


def model_flops(config: Any) -> float:
  """Returns the FLOPs of the matmuls of one step: three forward passes of the towers.

  Frozen towers count as trained, experts as k per token.
  """
  forward = sum(count.flops_per_example(config.model).values())
  return 3.0 * forward * config.batch_size


def memory() -> dict[str, float]:
  """Returns GiB of device memory: in use, peak and limit of the fullest local device.

  {} where the backend does not tell, as on CPU.
  """
  stats = [d.memory_stats() or {} for d in jax.local_devices()]
  names = {
    "hbm_used_gib": "bytes_in_use",
    "hbm_peak_gib": "peak_bytes_in_use",
    "hbm_limit_gib": "bytes_limit",
  }
  out = {}
  for name, key in names.items():
    values = [s[key] for s in stats if key in s]
    if values:
      out[name] = max(values) / math.pow(2, 30)
  return out
