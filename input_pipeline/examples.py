"""From a place in a source's endless stream of examples to arrays of a batch.

Place q lies in epoch q // n. Its source index is a permutation of [0, n) of that
epoch's own seed, and its random numbers come from (seed, stream, p, attempt), p being
its position in the run's stream, which is q unless there is a mixture: nothing depends
on threads, workers or hosts. An example that drops out is replaced at its own position
by one whose index those same numbers draw, attempt 1, 2, ...; so no position needs to
know how many others dropped out, and batches are always full.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
from typing import Any, NamedTuple
import zlib

import grain
import numpy as np

from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example, Source, Transform
from model import catalogue

TRAIN, EVAL = 0, 1  # streams of random numbers
_ATTEMPTS = 64
_ROUNDS = 4  # of Grain's index shuffle


class TooManyDropped(ValueError):
  """More examples dropped out than config.data.max_dropped allows."""


class Rows(NamedTuple):
  """Some rows of a batch, and what it took to fill them.

  Attributes:
    arrays: key -> [rows, ...].
    tried: source of the mixture -> examples of it that were read; "" without a mixture.
    dropped: source -> (reason, index in the source) of those that were not used.
  """

  arrays: dict[str, np.ndarray]
  tried: dict[str, int]
  dropped: dict[str, list[tuple[str, int]]]


@dataclasses.dataclass(frozen=True)
class Maker:
  """Makes the examples of a source; picklable, so that workers can have one each.

  Attributes:
    source: raw examples.
    transforms: applied in order; (name, transform).
    shapes: key -> expected (shape, dtype) of a modality's array.
    seed: of the run.
    stream: TRAIN or EVAL.
    split: for error messages.
    repeat: positions in a row of the training stream that hold the same example, each
      transformed anew: bags of rows of one id (cf. arXiv 1901.09335). A bag whose
      example drops out has one replacement, unless only some of its rows drop out.
    name: of the source in a mixture; "" without one.
    part: of the source's examples that are read here, "" for all.
    rows: int[n], the source indices of the part; None: all.
  """

  source: Source
  transforms: tuple[tuple[str, Transform], ...]
  shapes: Mapping[str, tuple[tuple[int, ...], np.dtype]]
  seed: int
  stream: int
  split: str = "train"
  repeat: int = 1
  name: str = ""
  part: str = ""
  rows: np.ndarray | None = None

  @property
  def key(self) -> str:
    """Returns what tells this stream from others of the run."""
    return "/".join(filter(None, (self.name, self.part)))

  def __len__(self) -> int:
    return len(self.source) if self.rows is None else len(self.rows)

  @functools.cached_property
  def _pairs(self) -> bool:
    return any("partner" in t.reads for _, t in self.transforms)

  @functools.cached_property
  def _kept(self) -> tuple[str, ...]:
    kept = (getattr(t, "kept", ()) for _, t in self.transforms)
    return tuple(dict.fromkeys(itertools.chain(*kept)))

  def one(self, index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns the arrays of the example at `index` of the source.

    Raises:
      Drop: it cannot be used.
      ValueError: a transform reads a key that the example does not have, or an array
        is not what the model reads.
    """
    example = dict(self.source[index])
    if self._pairs:
      example["partner"] = self.source[int(rng.integers(len(self.source)))]
    for name, transform in self.transforms:
      check_reads(name, transform, example, index)
      changed = transform(example, rng)
      if changed is None:
        raise Drop(f"{name} dropped it")
      example = changed
    return self._arrays(example, index)

  def train_row(
    self, position: int, place: int
  ) -> tuple[dict[str, np.ndarray], int, list[tuple[str, int]]]:
    """Returns (arrays, tried, dropped) for a position of the training stream.

    Args:
      position: in the run's stream; what is random comes from it.
      place: in the stream of this source.
    """
    dropped: list[tuple[str, int]] = []
    size = len(self)
    chosen = shuffled(place // self.repeat, size, self.seed, self.key)
    for attempt in range(_ATTEMPTS):
      rng = np.random.default_rng((self.seed, self.stream, position, attempt))
      if attempt:
        own = rng if self.repeat == 1 else self._of_bag(place // self.repeat, attempt)
        chosen = int(own.integers(size))
      index = chosen if self.rows is None else int(self.rows[chosen])
      try:
        return self.one(index, rng), attempt + 1, dropped
      except Drop as e:
        dropped.append((e.reason, index))
    raise TooManyDropped(
      f"position {position}: {_ATTEMPTS} examples in a row dropped out. "
      + report(dropped, _ATTEMPTS)
    )

  def _of_bag(self, bag: int, attempt: int) -> np.random.Generator:
    # All rows of a bag are to get the same replacement.
    key = zlib.crc32(self.key.encode())
    return np.random.default_rng((self.seed, self.stream, bag, attempt, key))

  def eval_row(self, index: int) -> dict[str, np.ndarray]:
    """Returns the arrays of the example at `index`, with random numbers of its own."""
    return self.one(index, np.random.default_rng((self.seed, self.stream, index)))

  def _arrays(self, example: Example, index: int) -> dict[str, np.ndarray]:
    """Returns what a batch holds: modalities, masks, id, index, labels, the kept."""
    arrays: dict[str, np.ndarray] = {}
    for key, (shape, dtype) in self.shapes.items():
      if key not in example:
        continue
      arrays[key] = value = np.asarray(example[key])
      wanted = np.dtype(np.uint8) if f"{key}_affine" in example else dtype
      if not _fits(value, shape, wanted):
        raise ValueError(
          f"{key!r} is {value.dtype}{list(value.shape)} after config.data.transforms, "
          f"but config.model.modalities.{key} reads {wanted}{list(shape)}"
        )
      if f"{key}_mask" in example:
        arrays[f"{key}_mask"] = np.asarray(example[f"{key}_mask"], bool)
    if not arrays:
      raise ValueError(
        f"examples of split {self.split!r} hold no modality of config.model.modalities "
        f"{list(self.shapes)} after config.data.transforms, only {sorted(example)}"
      )
    whole = {k: v for k, v in example.items() if k.startswith("label_")}
    whole |= {"id": example.get("id", index), "index": index}
    arrays |= {k: _whole(k, v, index) for k, v in whole.items()}
    return arrays | {k: _numbers(k, example[k], index) for k in self._kept}


def check_reads(name: str, transform: Transform, example: Any, index: int) -> None:
  """Raises ValueError where the example lacks a key that the transform reads."""
  for key in transform.reads:
    if key in example:
      continue
    choices = key.split("|")
    if not any(choice in example for choice in choices):
      raise ValueError(
        f"transform {name!r} reads {' or '.join(map(repr, choices))}, which example "
        f"{index} does not have; it has {sorted(example)}. Change "
        "config.data.transforms or the keys of config.data.options; "
        f"{catalogue.near_misses(choices[0], sorted(example))}"
      )


def shuffled(place: int, size: int, seed: int, key: str = "") -> int:
  """Returns the index of a place in a source: a new permutation in each epoch.

  Sources of a mixture have different ones, by their `key`.
  """
  epoch, at = divmod(place, size)
  if size == 1:
    return 0
  shuffle = grain.experimental.index_shuffle
  return shuffle(at, size - 1, _epoch_seed(seed, epoch, key), _ROUNDS)


@functools.lru_cache(maxsize=64)
def _epoch_seed(seed: int, epoch: int, key: str) -> int:
  # Not seed + epoch: run 1's first epoch would be run 0's second.
  own = (zlib.crc32(key.encode()),) if key else ()
  return int(np.random.SeedSequence((seed, epoch, *own)).generate_state(1)[0])


def eval_rows(maker: Maker, indices: Sequence[int], template: Callable) -> Rows:
  """Returns one row for each source index, with `valid`.

  An index beyond the source, or whose example drops out, is a row of zeros with id,
  index and labels -1. `template` returns the arrays of any usable example.
  """
  rows, dropped, tried = [], [], 0
  for index in indices:
    row = None
    if index < len(maker.source):
      tried += 1
      try:
        row = maker.eval_row(index)
      except Drop as e:
        dropped.append((e.reason, index))
    rows.append(row)
  if any(row is None for row in rows):
    real = next((row for row in rows if row is not None), None)
    empty = _blank(template() if real is None else real)
  arrays = stack([empty if row is None else row for row in rows])
  arrays["valid"] = np.array([row is not None for row in rows])
  return Rows(arrays, {maker.name: tried}, {maker.name: dropped})


def _blank(row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  return {k: blank(k, v) for k, v in row.items()}


def blank(key: str, value: np.ndarray) -> np.ndarray:
  """Returns what stands for a value that is not there: -1 of ids and labels, else 0."""
  whole = key in ("id", "index") or key.startswith("label_")
  return np.full_like(value, -1 if whole else 0)


def stack(rows: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """Returns key -> [rows, ...].

  Raises:
    ValueError: rows with other keys or shapes than the first.
  """
  first = rows[0]
  for row in rows:
    if row.keys() != first.keys():
      raise ValueError(
        f"example {int(row['index'])} has {sorted(row)}, but example "
        f"{int(first['index'])} has {sorted(first)}: all examples need the same keys"
      )
  return {key: np.stack([row[key] for row in rows]) for key in first}


def report(dropped: Sequence[tuple[str, int]], tried: int) -> str:
  """Returns one line: how many dropped out, why, and the first example of each kind."""
  counts: dict[str, list[int]] = {}
  for reason, index in dropped:
    counts.setdefault(reason, []).append(index)
  ordered = sorted(counts.items(), key=lambda item: (-len(item[1]), item[0]))
  reasons = ", ".join(f"{r} {len(at)} (example {at[0]})" for r, at in ordered)
  share = len(dropped) / max(tried, 1)
  return f"{len(dropped)} of {tried} examples dropped ({share:.1%}): {reasons}"


def _whole(key: str, value: Any, index: int) -> np.ndarray:
  """Returns whole numbers as i32; others, and those that do not fit, are errors."""
  x = np.asarray(value)
  if x.dtype.kind not in "iubf" or np.any(x != np.trunc(x)):
    raise ValueError(
      f"{key!r} of example {index} is {x.tolist()!r}, not a whole number"
    )
  least, most = np.iinfo(np.int32).min, np.iinfo(np.int32).max
  if np.any((x < least) | (x > most)):
    raise ValueError(
      f"{key!r} of example {index} is {x.tolist()!r}: whole numbers of a batch "
      f"have 32 bits, {most} at most. Number them anew."
    )
  return x.astype(np.int32)


def _numbers(key: str, value: Any, index: int) -> np.ndarray:
  """Returns the value as i32 if it is whole numbers or truths, else as f32."""
  x = np.asarray(value)
  if x.dtype.kind in "iub":
    return _whole(key, value, index)
  if x.dtype.kind != "f":
    raise ValueError(f"{key!r} of example {index} is {x.tolist()!r}, not a number")
  return x.astype(np.float32)


def _fits(value: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> bool:
  single = len(shape) == 3 and shape[-1] == 1 and value.shape == shape[:-1]
  return (value.shape == shape or single) and value.dtype == dtype
