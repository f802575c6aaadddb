"""Plans which short sequences of a batch share rows, and cuts what does not fit.

What becomes of a plan is written in model/layers/packing.py. It is a pure function of
the batch: hosts plan their own rows, and nothing of it is in the iterator's state.
"""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

WHERE = "config.model.modalities"
Arrays = dict[str, np.ndarray]


class Plan(NamedTuple):
  """Where examples go.

  Attributes:
    start: int32[b], each example's first slot in its group.
    kept: int[b], how many of its tokens fit.
  """

  start: np.ndarray
  kept: np.ndarray


@dataclasses.dataclass(frozen=True)
class Packer:
  """Packs one modality, by `config.model.modalities.<name>.pack`.

  Attributes:
    name: of the modality.
    tokens: slots of an example, in the mean of a group.
    rows: examples' worth of slots in a bin.
    group: examples that are packed together.
    extra: tokens that towers put before each example.
    step: entries of the mask, and tokens, of what is cut as one: (frames, tokens) of a
      column of patches, else (1, 1).
    fill: the id of padding, of sequences of ids whose last one stays; None: of others.
  """

  name: str
  tokens: int
  rows: int
  group: int
  extra: int = 0
  step: tuple[int, int] = (1, 1)
  fill: int | None = None

  def __call__(self, batch: Arrays) -> Arrays:
    """Returns the batch with `<name>_pack` int32[b, 2], and shortened where it must be.

    The plan is each example's first slot in its group, and how many tokens it lost.
    Examples are shortened at their ends, but for the last id, which may end a text.

    Raises:
      ValueError: no mask, or rows that are not whole groups.
    """
    if self.name not in batch:
      return batch
    key = f"{self.name}_mask"
    if key not in batch:
      raise ValueError(
        f"{WHERE}.{self.name}.pack needs a mask, and config.data.transforms make no "
        f"{key!r}, only {sorted(batch)}: set {WHERE}.{self.name}.pack.tokens = 0"
      )
    mask = batch[key]
    if len(mask) % self.group:
      raise ValueError(
        f"{len(mask)} rows of a batch are not whole groups of "
        f"{WHERE}.{self.name}.pack.group = {self.group} "
        f"({len(mask)} % {self.group} = {len(mask) % self.group})"
      )
    lengths = self._lengths(mask)
    made = plan(lengths, self.tokens, self.rows, self.group)
    out = dict(batch)
    short = np.flatnonzero(made.kept < lengths).tolist()
    if short:
      changed = [self.name, key] if self.fill is not None else [key]
      out |= {k: batch[k].copy() for k in changed}
      for i in short:
        self._shorten(out, i, int(made.kept[i]))
    cut = lengths - self._lengths(out[key])
    both = np.stack([made.start, cut], axis=1).astype(np.int32)
    return out | {f"{self.name}_pack": both}

  def _lengths(self, mask: np.ndarray) -> np.ndarray:
    """Returns int[b]: tokens in the trunk, by a mask bool[b, t]."""
    frames, tokens = self.step
    steps = mask.reshape(len(mask), -1, frames).any(axis=-1).sum(axis=1)
    return steps * tokens + self.extra

  def _shorten(self, out: Arrays, i: int, kept: int) -> None:
    """Leaves so many tokens of row i, in place."""
    frames, tokens = self.step
    mask = out[f"{self.name}_mask"][i].reshape(-1, frames)
    real = np.flatnonzero(mask.any(axis=-1))
    count = (kept - self.extra) // tokens
    mask[real[count:]] = False
    if self.fill is not None:
      ids = out[self.name][i]
      ids[real[count - 1]] = ids[real[-1]]
      ids[real[count:]] = self.fill


def packers(config: Any) -> tuple[Packer, ...]:
  """Returns those of a config's modalities with `pack`.

  Raises:
    ValueError: batches of like lengths or sizes, too.
  """
  made = []
  for name, m in config.model.modalities.items():
    pack = m.get("pack") or {}
    if not pack.get("tokens"):
      continue
    data, key = config.data, "image_sizes" if m.stem == "patches" else "buckets"
    if data.get(key):
      raise ValueError(
        f"config.data.{key} = {tuple(data[key])} makes batches of several shapes, and "
        f"{WHERE}.{name}.pack packs those of one: use one of them"
      )
    step, fill = (1, 1), None
    if m.stem == "patches":
      rest = (s // p for s, p in zip(m.size[1:], m.patch[1:], strict=False))
      step = (m.patch[0], math.prod(rest))
    elif m.stem == "tokens":
      fill = max(m.pad, 0)
    extra = m.registers + (m.pool == "cls")
    made.append(Packer(name, **pack, extra=extra, step=step, fill=fill))
  return tuple(made)


def plan(lengths: np.ndarray, tokens: int, rows: int, group: int) -> Plan:
  """Fits the examples of each group into its bins, shortening as few as it can.

  Best fit, the longest first. Where that fails, no example of the group may be longer
  than the greatest bound found to let all fit; it is at least `tokens`, as examples of
  at most `tokens` always fit: while one is left over, no bin holds `rows` of them. What
  room the bins have then is given back.

  Args:
    lengths: int[b], at most rows * tokens each.
    tokens: slots of an example, in the mean.
    rows: examples' worth of slots in a bin.
    group: examples that are packed together: a multiple of `rows`, a divisor of b.
  """
  size, bins = rows * tokens, group // rows
  lengths = lengths.reshape(-1, group)
  kept = lengths.copy()
  where, fits = _best_fit(lengths, bins, size)
  bad = np.flatnonzero(~fits)
  if len(bad):
    long = lengths[bad]
    low, high = np.full(len(bad), tokens), long.max(axis=1)  # fits, does not
    while (high - low > 1).any():
      middle = (low + high) // 2
      _, good = _best_fit(np.minimum(long, middle[:, None]), bins, size)
      low, high = np.where(good, middle, low), np.where(good, high, middle)
    kept[bad] = np.minimum(long, low[:, None])
    where[bad], _ = _best_fit(kept[bad], bins, size)
  same = where[:, :, None] == where[:, None, :]  # [groups, example, other]
  room = size - (same * kept[:, None]).sum(axis=-1)
  before = same & np.tri(group, k=-1, dtype=bool)
  lost = lengths - kept
  kept = kept + np.clip(room - (before * lost[:, None]).sum(axis=-1), 0, lost)
  start = where * size + (before * kept[:, None]).sum(axis=-1)
  return Plan(start.reshape(-1).astype(np.int32), kept.reshape(-1))


def _best_fit(
  lengths: np.ndarray, bins: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns each example's bin, int[groups, group], and whether a group fits in all."""
  groups = np.arange(len(lengths))
  room = np.full((len(lengths), bins), size)
  where = np.zeros_like(lengths)
  fits = np.ones(len(lengths), bool)
  # In step over the groups: a loop over all examples would be felt in large batches.
  for i in np.argsort(-lengths, axis=1, kind="stable").T:
    need = lengths[groups, i]
    left = np.where(room >= need[:, None], room, size + 1)
    best = left.argmin(axis=1)
    fits &= left[groups, best] <= size
    where[groups, i] = best
    room[groups, best] -= need
  return where, fits


def packed(made: tuple[Packer, ...], batch: Mapping[str, np.ndarray]) -> Arrays:
  """Returns the batch, packed by each."""
  out = dict(batch)
  for packer in made:
    out = packer(out)
  return out
