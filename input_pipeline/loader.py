"""The training stream and the evaluation batches of one process, over Grain.

A batch is cut into chunks of at most 32 rows, which Grain's threads or workers make
ahead of time; the consumer joins them. So many threads help even with one huge batch.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

from absl import flags
import grain
import numpy as np

from input_pipeline import examples, packing
from input_pipeline.examples import Maker, Rows, TooManyDropped
from input_pipeline.stream import Stream

_CHUNK = 32
_FEW = 1000  # examples below which a share of dropped ones says little


@dataclasses.dataclass(frozen=True)
class Shape:
  """How batches fall on processes: the same global batches whatever their number.

  Attributes:
    batch_size: global.
    process_index: of this process.
    process_count: which must divide batch_size.
    key: what sets the batch size, for the error.
  """

  batch_size: int
  process_index: int = 0
  process_count: int = 1
  key: str = "config.batch_size"

  def __post_init__(self):
    if self.batch_size < 1 or self.batch_size % self.process_count:
      raise ValueError(
        f"batch size {self.batch_size} is not divisible by the {self.process_count} "
        f"processes that read data ({self.batch_size} % {self.process_count} = "
        f"{self.batch_size % self.process_count}): set {self.key} to a multiple"
      )
    if not 0 <= self.process_index < self.process_count:
      raise ValueError(f"process {self.process_index} of {self.process_count}")

  @property
  def rows(self) -> int:
    """Returns the rows of this process in each batch."""
    return self.batch_size // self.process_count

  @property
  def chunks(self) -> int:
    """Returns the chunks of this process in each batch."""
    return -(-self.rows // _CHUNK)

  def positions(self, chunk: int, start: int = 0) -> range:
    """Returns the global positions of this process's chunk, counted from `start`."""
    batch, part = divmod(chunk, self.chunks)
    first = start + batch * self.batch_size + self.process_index * self.rows
    return range(first + part * _CHUNK, first + min((part + 1) * _CHUNK, self.rows))


@dataclasses.dataclass(frozen=True)
class _TrainChunk:
  stream: Stream
  shape: Shape
  start: int

  def __call__(self, chunk: int) -> Rows:
    return self.stream.rows(self.shape.positions(chunk, self.start))


@dataclasses.dataclass(frozen=True)
class _EvalChunk:
  maker: Maker
  shape: Shape

  def __call__(self, chunk: int) -> Rows:
    indices = self.shape.positions(chunk)
    return examples.eval_rows(self.maker, indices, functools.partial(_any, self.maker))


def _any(maker: Maker) -> dict[str, np.ndarray]:
  """Returns the arrays of the first usable example."""
  dropped = []
  for index in range(len(maker.source)):
    try:
      return maker.eval_row(index)
    except examples.Drop as e:
      dropped.append((e.reason, index))
  raise TooManyDropped(
    f"split {maker.split!r}: {examples.report(dropped, len(dropped))}"
  )


class Tally:
  """Counts of what was tried and dropped of a source, against a limit."""

  def __init__(self, max_dropped: float, source: str = ""):
    self.max_dropped, self.source = max_dropped, source
    self.tried = self.before = 0
    self.lost: dict[str, list[int]] = {}

  @property
  def dropped(self) -> int:
    """Returns how many examples dropped out, those before a restore included."""
    return self.before + sum(map(len, self.lost.values()))

  @property
  def reasons(self) -> dict[str, int]:
    """Returns reason -> examples that dropped out."""
    counts = {reason: len(at) for reason, at in sorted(self.lost.items())}
    counts |= {"before the restart": self.before} if self.before else {}
    where = f"{self.source}/" if self.source else ""
    return {where + reason: count for reason, count in counts.items()}

  def add(self, rows: Rows, total: int = 0) -> None:
    """Counts some rows.

    Args:
      rows: just read.
      total: of the examples to come, where known; a share of it is what may drop out.

    Raises:
      TooManyDropped: with the counts by reason.
    """
    self.tried += rows.tried.get(self.source, 0)
    for reason, index in rows.dropped.get(self.source, ()):
      self.lost.setdefault(reason, []).append(index)
    if self.dropped > self.max_dropped * max(self.tried, total or _FEW):
      pairs = [(reason, i) for reason, at in self.lost.items() for i in at]
      earlier = f", and {self.before} before the restart" if self.before else ""
      source = f"source {self.source!r}: " if self.source else ""
      raise TooManyDropped(
        f"{source}{examples.report(pairs, self.tried)}{earlier}. More than "
        f"config.data.max_dropped = {self.max_dropped:.1%}: mend the data or raise it."
      )


class Loader:
  """An endless iterator of this process's rows of each global training batch.

  Its state is a handful of numbers, and only `example`, the global position of the next
  batch's first example, decides what comes next: a run may go on with other threads,
  workers, process counts or batch size.
  """

  def __init__(
    self,
    stream: Stream,
    shape: Shape,
    *,
    threads: int,
    workers: int,
    prefetch: int,
    max_dropped: Mapping[str, float],
    packers: tuple[packing.Packer, ...] = (),
  ):
    self._stream, self._shape, self._packers = stream, shape, packers
    self._threads, self._workers, self._prefetch = threads, workers, prefetch
    self._tallies = {name: Tally(max_dropped[name], name) for name in stream.names}
    self._example = 0
    self._chunks: Iterator[Rows] | None = None

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    return self

  def __next__(self) -> dict[str, np.ndarray]:
    if self._chunks is None:
      self._chunks = iter(self._dataset())
    rows = [next(self._chunks) for _ in range(self._shape.chunks)]
    self._example += self._shape.batch_size
    for part in rows:
      for tally in self._tallies.values():
        tally.add(part)
    return packing.packed(self._packers, joined(rows))

  @property
  def dropped(self) -> dict[str, int]:
    """Returns reason -> examples of this process that dropped out.

    Those of a mixture are called "<source>/<reason>".
    """
    return {k: n for tally in self._tallies.values() for k, n in tally.reasons.items()}

  def state(self) -> dict[str, Any]:
    """Returns where the stream stands, after the batches handed out so far.

    `example` is global. `tried` and `dropped` are this process's, for its report; a
    mixture has them by source. `given`, what each source has given, is there to be
    compared: it follows from `example`.
    """
    tried = {name: tally.tried for name, tally in self._tallies.items()}
    dropped = {name: tally.dropped for name, tally in self._tallies.items()}
    state: dict[str, Any] = dict(example=self._example, tried=tried, dropped=dropped)
    if list(tried) == [""]:
      state |= dict(tried=tried[""], dropped=dropped[""])
    if len(self._stream.members) > 1:
      state["given"] = self._stream.given(self._example)
    return state

  def restore(self, state: Mapping[str, Any]) -> None:
    """Goes on from a `state()`, whichever process or machine saved it.

    Raises:
      ValueError: the mixture would have given other examples by now.
    """
    example = int(state["example"])
    self._check_given(example, state.get("given"))
    self.close()
    self._example = example
    for name, old in self._tallies.items():
      tally = Tally(old.max_dropped, name)
      tally.tried, tally.before = (_of(state[k], name) for k in ("tried", "dropped"))
      self._tallies[name] = tally

  def _check_given(self, example: int, saved: Mapping[str, int] | None) -> None:
    now, block = self._stream.given(example), self._stream.plan.block
    if example % block:
      raise ValueError(
        f"the run stands at example {example}, amid {block} that belong together "
        f"({example} % {block} = {example % block}): keep its config.batch_size and "
        "config.data.repeat"
      )
    if saved is None and len(now) == 1:
      return
    if saved != now:
      raise ValueError(
        f"by example {example} the run had read {saved or 'a single source'}, but "
        f"config.data would have read {now}: examples would be seen again or never. "
        "To change the shares of a run, keep each weight as it was and add what it is "
        f'from here on, (old, {example}, new), such as ("name", (0.9, {example}, 0.5), '
        "{}); to start on other data, take the parameters only, by config.init_from"
      )

  def close(self) -> None:
    """Stops reading ahead; the next batch starts again from the state."""
    close = getattr(self._chunks, "close", None)
    self._chunks = None
    if close is not None:
      close()

  def _dataset(self) -> grain.IterDataset:
    make = _TrainChunk(self._stream, self._shape, self._example)
    ahead = max(1, self._prefetch) * self._shape.chunks
    dataset = grain.MapDataset.range(sys.maxsize // 2).map(make)
    if not self._workers:
      return dataset.to_iter_dataset(_reading(self._threads, ahead))
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()  # Grain's workers read them; a notebook has none
    each = -(-ahead // self._workers)
    reading = _reading(max(1, self._threads // self._workers), each)
    return dataset.to_iter_dataset(reading).mp_prefetch(
      grain.MultiprocessingOptions(self._workers, per_worker_buffer_size=each),
      worker_init_fn=_stay_with_the_run,
    )


class EvalBatches:
  """One pass over a split, as often as asked: each example once, in full batches.

  Every process gets the same number of batches. Rows of padding, and those of examples
  that drop out, have `valid` False.
  """

  def __init__(
    self, maker: Maker, shape: Shape, *, threads: int, prefetch: int, max_dropped: float
  ):
    self._maker, self._shape = maker, shape
    self._reading = _reading(threads, max(1, prefetch) * shape.chunks)
    self._max_dropped = max_dropped
    self.dropped: dict[str, int] = {}

  def __len__(self) -> int:
    return -(-len(self._maker.source) // self._shape.batch_size)

  def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
    tally = Tally(self._max_dropped)
    chunks = len(self) * self._shape.chunks
    make = _EvalChunk(self._maker, self._shape)
    dataset = grain.MapDataset.range(chunks).map(make).to_iter_dataset(self._reading)
    iterator = iter(dataset)
    for _ in range(len(self)):
      rows = [next(iterator) for _ in range(self._shape.chunks)]
      for part in rows:
        tally.add(part, total=len(self._maker.source))
      self.dropped = tally.reasons
      yield joined(rows)


def _stay_with_the_run(index: int, count: int) -> None:
  """Has a worker of Grain end with its run: neither before nor after it.

  Ctrl-C and SIGTERM often reach all processes of a run. It answers them between steps,
  and until then it needs its workers. They end when it closes the stream; if it is gone
  without that, they would wait for it forever.
  """
  del index, count
  for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, signal.SIG_IGN)
  threading.Thread(target=_end_with_the_run, daemon=True).start()


def _end_with_the_run() -> None:
  run = multiprocessing.parent_process()
  if run is not None:
    run.join()
    os._exit(1)


def joined(parts: Sequence[Rows]) -> dict[str, np.ndarray]:
  """Returns the arrays of several parts, one after another."""
  if len(parts) == 1:
    return parts[0].arrays
  first, *others = (part.arrays for part in parts)
  for other in others:
    if other.keys() != first.keys():
      raise ValueError(
        f"examples differ in their keys: {sorted(first)} and {sorted(other)}"
      )
  return {key: np.concatenate([p.arrays[key] for p in parts]) for key in first}


def _of(count: int | Mapping[str, int], name: str) -> int:
  """Returns a source's count, out of the state of a run with a mixture or without."""
  return int(count.get(name, 0) if isinstance(count, Mapping) else count)


def _reading(threads: int, ahead: int) -> grain.ReadOptions:
  if threads <= 0:
    return grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
  return grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(ahead, threads)
  )
