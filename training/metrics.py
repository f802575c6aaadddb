"""Where numbers go: metrics.jsonl and TensorBoard, without TensorFlow.

`metrics.jsonl` holds one JSON object per write: `step`, then the values; arrays as
nested lists, what is not finite as null. It is the record that reports are made of;
TensorBoard is for looking on.
"""

from collections.abc import Iterable, Mapping
import importlib.util
import json
import math
import pathlib
import sys
from types import ModuleType
from typing import Any

from absl import logging
from etils import epath
import jax
import numpy as np
from tensorboardX.summary import hparams as hparams_summary

from training import bucket_events, collapse, event_files

# Part of this module's interface: one import gives the loop all it measures with.
from training.clock import StepClock as StepClock
from training.clock import memory as memory
from training.clock import mfu as mfu
from training.clock import model_flops as model_flops
from training.clock import step_flops as step_flops

LARGEST = 4096  # elements of an array that metrics.jsonl takes


def _clu_interface() -> ModuleType:
  """Returns clu.metric_writers.interface without its package, which needs TF."""
  name = "clu.metric_writers.interface"
  if name in sys.modules:  # TensorFlow is there and somebody imported it
    return sys.modules[name]
  package = importlib.util.find_spec("clu")
  if package is None or not package.submodule_search_locations:
    raise ImportError("clu is not installed: pip install -r requirements.txt")
  folder = pathlib.Path(package.submodule_search_locations[0])
  path = folder / "metric_writers" / "interface.py"
  spec = importlib.util.spec_from_file_location("concord_clu_interface", path)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


MetricWriter: Any = _clu_interface().MetricWriter


class Writer(MetricWriter):
  """clu's MetricWriter over metrics.jsonl and TensorBoard event files.

  Only process 0 writes; the methods of the others do nothing. Values may be arrays of
  any device: they are fetched.
  """

  def __init__(
    self,
    workdir: str,
    resume_step: int | None = None,
    enabled: bool | None = None,
    board: Any = None,
  ):
    """Opens the files, and forgets what was written after `resume_step`.

    Args:
      workdir: a folder, created if absent; local or of a bucket (gs://...).
      resume_step: the restored step; later records of an interrupted run are removed,
        because they will be written again. None keeps all.
      enabled: default: whether this is process 0.
      board: gets each record too: a training.wandb_board.Board, or None.
    """
    self._enabled = jax.process_index() == 0 if enabled is None else enabled
    self._warned: set[str] = set()
    self._also = board
    if not self._enabled:
      return
    bucket_events.register()
    folder = epath.Path(workdir)
    folder.mkdir(parents=True, exist_ok=True)
    self._lines = _Lines(folder / "metrics.jsonl", resume_step)
    purge = None if resume_step is None else resume_step + 1
    self._board = event_files.board(str(folder / "tensorboard"), purge)

  def write(self, step: int, values: Mapping[str, Any]) -> None:
    """Writes scalars and arrays as one record; anything else raises TypeError."""
    if not self._enabled:
      return
    record: dict[str, Any] = {}
    for name, value in values.items():
      array = np.asarray(jax.device_get(value))
      if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"metric {name} is {array.dtype}; expected numbers")
      if array.ndim == 0:
        record[name] = _plain(array)
        self._board.add_scalar(name, float(array), step)
        continue
      if array.size <= LARGEST:
        record[name] = _plain(array)
      self._histogram(step, name, array)
    self._lines.append(step, record)
    if self._also is not None:
      self._also.write(step, record)

  def write_losses(self, losses: Iterable[tuple[int, float]]) -> None:
    """Writes the loss of every step, (step, loss), to metrics.jsonl only."""
    if self._enabled:
      for step, loss in losses:
        self._lines.append(step, {"loss": _plain(np.asarray(loss))})

  def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
    """Writes scalars of one step."""
    self.write(step, scalars)

  def write_arrays(self, step: int, arrays: Mapping[str, Any]) -> None:
    """Writes arrays: nested lists up to LARGEST elements, and histograms."""
    self.write(step, arrays)

  def write_summaries(
    self, step: int, values: Mapping[str, Any], metadata: Any = None
  ) -> None:
    """Writes tensors as arrays; `metadata` of TensorBoard plugins is not kept."""
    del metadata
    self.write(step, values)

  def write_histograms(
    self,
    step: int,
    arrays: Mapping[str, Any],
    num_buckets: Mapping[str, int] | None = None,
  ) -> None:
    """Writes histograms to TensorBoard; 30 buckets unless told."""
    if self._enabled:
      for name, array in arrays.items():
        self._histogram(
          step, name, np.asarray(array), (num_buckets or {}).get(name, 30)
        )

  def write_images(self, step: int, images: Mapping[str, Any]) -> None:
    """Writes [n, h, w, c] or [h, w, c], floats in [0, 1] or uint8, to TensorBoard."""
    if self._enabled:
      for name, image in images.items():
        image = np.asarray(jax.device_get(image))
        if image.ndim not in (3, 4):
          raise ValueError(
            f"image {name} has shape {image.shape}; expected [n,] h, w, c"
          )
        batch = image if image.ndim == 4 else image[None]
        for i, one in enumerate(batch):
          tag = name if len(batch) == 1 else f"{name}/{i}"
          self._board.add_image(tag, one, step, dataformats="HWC")

  def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
    """Writes markdown to TensorBoard."""
    if self._enabled:
      for name, text in texts.items():
        self._board.add_text(name, text, step)

  def write_videos(self, step: int, videos: Mapping[str, Any]) -> None:
    """Not supported: says so once."""
    self._once(
      "videos", "step %d: %s not written: videos are not supported", step, videos
    )

  def write_audios(
    self, step: int, audios: Mapping[str, Any], *, sample_rate: int
  ) -> None:
    """Not supported: says so once."""
    del sample_rate
    self._once(
      "audios", "step %d: %s not written: audio is not supported", step, audios
    )

  def write_hparams(self, hparams: Mapping[str, Any]) -> None:
    """Writes a flat mapping of hyper-parameters to TensorBoard, once per run."""
    if not self._enabled:
      return
    plain = {
      k: v if isinstance(v, bool | int | float | str) else str(v)
      for k, v in hparams.items()
    }
    for summary in hparams_summary(plain, {}):
      self._board.file_writer.add_summary(summary)

  def warn_of_collapse(
    self, step: int, values: Mapping[str, Any], config: Any
  ) -> list[str]:
    """Warns, once per layer, modality and metric, of what falls below its floor.

    The floors are those of `config.model.moe.warn`; see `training.collapse`.
    """
    found = collapse.below(values, config.model.moe)
    new = {name: text for name, text in found.items() if name not in self._warned}
    self._warned |= new.keys()
    warnings = [f"step {step}: {text}" for text in new.values()]
    if self._enabled:
      for warning in warnings:
        logging.warning("%s", warning)
    return warnings

  def flush(self) -> None:
    """Writes out what is held back."""
    if self._enabled:
      self._lines.flush()
      self._board.flush()

  def close(self) -> None:
    """Flushes and closes; harmless a second time."""
    if self._enabled:
      self.flush()
      self._lines.close()
      self._board.close()
      if self._also is not None:
        self._also.close()
      self._enabled = False

  def _histogram(self, step: int, name: str, array: np.ndarray, buckets: int = 30):
    finite = array[np.isfinite(array)].astype(np.float64)
    if finite.size:
      # Bins of our own: equal ones over the range, also where all values are one.
      self._board.add_histogram(name, finite, step, bins=_edges(finite, buckets))

  def _once(self, key: str, text: str, step: int, values: Mapping[str, Any]) -> None:
    if self._enabled and key not in self._warned:
      self._warned.add(key)
      logging.warning(text, step, ", ".join(values))


class _Lines:
  """metrics.jsonl: appended to on a disk, rewritten on each flush in a bucket.

  Where the disk is full the lines wait in memory, and training goes on.
  """

  def __init__(self, path: epath.Path, resume_step: int | None):
    self._path = path
    kept = _kept(path, resume_step)
    self._local = "://" not in str(path)
    if self._local:
      # Through a second file: a kill while rewriting must not cost the history.
      new = pathlib.Path(f"{path}.new")
      new.write_text("".join(kept))
      new.replace(path)
      self._file = open(path, "ab", buffering=0)  # noqa: SIM115
      self._waiting = b""
      self._warned = False
    else:
      self._text = kept

  def append(self, step: int, record: Mapping[str, Any]) -> None:
    line = json.dumps({"step": int(step), **record}, allow_nan=False) + "\n"
    if self._local:
      self._waiting += line.encode()
      self._write()  # a killed run keeps its last record
    else:
      self._text.append(line)

  def _write(self) -> None:
    try:
      while self._waiting:
        self._waiting = self._waiting[self._file.write(self._waiting) :]
    except OSError as e:
      if not self._warned:
        logging.warning("metrics.jsonl: %s; its lines wait in memory", e)
      self._warned = True

  def flush(self) -> None:
    if self._local:
      self._write()
    else:
      self._path.write_text("".join(self._text))

  def close(self) -> None:
    self.flush()
    if self._local:
      self._file.close()


def read(workdir: str) -> list[dict[str, Any]]:
  """Returns the records of a workdir's metrics.jsonl in order; [] without one."""
  path = epath.Path(workdir) / "metrics.jsonl"
  return [json.loads(line) for line in _kept(path, None)]


def _kept(path: epath.Path, resume_step: int | None) -> list[str]:
  """Returns the whole lines up to a step; a line cut by a kill is dropped."""
  kept: list[str] = []
  if not path.exists():
    return kept
  for line in path.read_text().splitlines():
    try:
      step = json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
      continue
    if resume_step is None or step <= resume_step:
      kept.append(line + "\n")
  return kept


def _plain(array: np.ndarray) -> Any:
  """Returns numbers that JSON can hold: nested lists, null for what is not finite."""

  def clean(value):
    if isinstance(value, list):
      return [clean(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

  if array.dtype.kind not in "biuf":
    array = array.astype(np.float32)  # bfloat16
  return clean(array.tolist())


def _edges(values: np.ndarray, buckets: int) -> np.ndarray:
  low, high = float(values.min()), float(values.max())
  if low == high:
    low, high = low - 0.5, high + 0.5
  return np.linspace(low, high, buckets + 1)
