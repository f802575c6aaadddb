"""Which source gives which example of a mixture's stream, in exact closed form.

Sources are the leaves of a balanced binary tree. The items of a node go left or right
so that of its first m items round(f(m)) went left, f(m) being what the left side is to
have given when the node as a whole is to have given m. f rises by at most 1 per item,
so every item has one place, and no place depends on what was read before: any position
is found in O(log sources * log knots) steps, from nothing but its number.

A node is off by at most 1/2 plus its share of what its parent is off. So with up to
four sources none is ever a whole example ahead or behind, with up to eight not 1.5.
Everything is done in integers: no machine rounds otherwise than another.

A node that is ahead looks at the shares to come, and shares between two knots depend on
both: a new knot may move examples before it. Hence eras: in each the tree goes by the
schedules as if no other era came, and the next one starts from what has been given.
"""

import bisect
from collections.abc import Sequence
import dataclasses
from fractions import Fraction
import functools
import itertools
import math
from typing import Any, NamedTuple, TypeGuard

Weight = float | Fraction
Knots = Weight | Sequence[tuple[int, Weight]]  # a weight, or (example, weight) in order
Schedule = Knots | Sequence[Any]  # or (knots, example, knots from there on, ...)


class _Segment(NamedTuple):
  """A stretch on which shares are linear; sums over sources, in the common unit.

  Attributes:
    start: its first example.
    length: in examples; 0: without an end, constant.
    given: of the first j sources together, before it.
    first: shares of the first j sources together, at its start.
    last: the same at its end.
    scale: the common unit is 1 / (2 * length * scale) of a share's.
  """

  start: int
  length: int
  given: tuple[int, ...]
  first: tuple[int, ...]
  last: tuple[int, ...]
  scale: int


@dataclasses.dataclass(frozen=True)
class Interleave:
  """Maps the positions of a stream to sources and places in their own streams.

  Attributes:
    schedules: of each source: a weight, or ((example, weight), ...), between which its
      share changes linearly, before and after which it stays. Weights are relative to
      their sum at each knot. Two knots at one example make a jump. Or (old, example,
      new, ...): one of these until an example, then another; what comes before it is
      as if the old one went on. Such a change waits for the end of a block.
    block: positions in a row that come from one source.

  Raises:
    ValueError: weights that are negative, not finite or all zero, or knots that are out
      of order; says of which source.
  """

  schedules: tuple[Schedule, ...]
  block: int = 1

  def __post_init__(self):
    if not self.schedules or self.block < 1:
      raise ValueError(f"{len(self.schedules)} sources in blocks of {self.block}")
    self._eras  # noqa: B018  # checks the weights

  @functools.cached_property
  def _eras(self) -> tuple["_Era", ...]:
    sources = [_changes(s, i) for i, s in enumerate(self.schedules)]
    out: list[_Era] = []
    given: tuple[int, ...] = (0,) * len(sources)
    for example in sorted({x for changes in sources for x in changes}):
      start = -(-example // self.block) * self.block
      if out:
        given = out[-1].counts(start)
      now = (changes[max(x for x in changes if x <= example)] for changes in sources)
      out.append(_Era(start, given, tuple(now), self.block))
    return tuple(out)

  @functools.cached_property
  def _starts(self) -> list[int]:
    return [era.start for era in self._eras]

  def _era(self, position: int) -> "_Era":
    return self._eras[bisect.bisect_right(self._starts, position) - 1]

  def locate(self, position: int) -> tuple[int, int]:
    """Returns (source, position in that source's own stream)."""
    return self._era(position).locate(position)

  def counts(self, position: int) -> tuple[int, ...]:
    """Returns how many of the first `position` positions are of each source."""
    return self._era(position).counts(position)

  def due(self, position: int) -> tuple[Fraction, ...]:
    """Returns the integral of each source's share over the first positions."""
    ends = [*self._starts[1:], position]
    eras = [
      era.due(min(end, position))
      for era, end in zip(self._eras, ends)
      if era.start <= position
    ]
    return tuple(sum(dues, Fraction(0)) for dues in zip(*eras))


@dataclasses.dataclass(frozen=True)
class _Era:
  """A stretch of the stream that goes by one schedule of each source.

  Attributes:
    start: its first position, that of a block.
    given: what each source has given before it.
    sources: the (example, weight) of each.
    block: as in `Interleave`.
  """

  start: int
  given: tuple[int, ...]
  sources: tuple[list[tuple[int, Fraction]], ...]
  block: int

  def __post_init__(self):
    self._segments  # noqa: B018  # checks the weights

  @functools.cached_property
  def _segments(self) -> tuple[_Segment, ...]:
    return _segments(self.sources, self.start)

  @functools.cached_property
  def _starts(self) -> list[int]:
    return [s.start for s in self._segments]

  @functools.cached_property
  def _unit(self) -> int:
    """What one block counts, in the common unit."""
    last = self._segments[-1]
    return 2 * last.first[-1] * last.scale * self.block

  @functools.cached_property
  def _settled(self) -> int:
    """The block of the era from which on shares stay as they are."""
    return -(-self._segments[-1].start // self.block)

  def locate(self, position: int) -> tuple[int, int]:
    """As of `Interleave`, for a position of the era."""
    block, within = divmod(position - self.start, self.block)
    low, high, item = 0, len(self.sources), block
    while high - low > 1:
      middle = (low + high) // 2
      before = self._left(low, middle, high, item, block)
      if self._left(low, middle, high, item + 1, block) > before:
        high, item = middle, before
      else:
        low, item = middle, item - before
    return low, self.given[low] + item * self.block + within

  def counts(self, position: int) -> tuple[int, ...]:
    """As of `Interleave`, for a position of the era or its end."""
    blocks, within = divmod(position - self.start, self.block)

    def split(low: int, high: int, items: int) -> list[int]:
      if high - low == 1:
        return [self.given[low] + items * self.block]
      middle = (low + high) // 2
      left = self._left(low, middle, high, items, blocks)
      return split(low, middle, left) + split(middle, high, items - left)

    counts = split(0, len(self.sources), blocks)
    if within:
      counts[self.locate(position)[0]] += within
    return tuple(counts)

  def due(self, position: int) -> tuple[Fraction, ...]:
    """Returns the integral of each source's share from the era's start on."""
    at = [self._given(j, position - self.start) for j in range(len(self.sources) + 1)]
    unit = Fraction(self.block, self._unit)
    return tuple((b - a) * unit for a, b in itertools.pairwise(at))

  def _left(self, low: int, middle: int, high: int, items: int, near: int) -> int:
    """Returns how many of the first items of sources low..high are of low..middle.

    `near` is a block not far from the one that decides: it saves time only.
    """
    due = items * self._unit
    block = self._reached(low, high, due, near)
    given = self._before(low, high, block)
    rise = self._before(low, high, block + 1) - given
    left = self._before(low, middle, block)
    rise_left = self._before(low, middle, block + 1) - left
    if not rise:  # no share, for good: whatever rounding left over goes right
      rise, rise_left = 1, 0
    # round(left + (due - given) * rise_left / rise), halves up
    twice = 2 * (left * rise + (due - given) * rise_left)
    return (twice + self._unit * rise) // (2 * self._unit * rise)

  def _reached(self, low: int, high: int, due: int, near: int) -> int:
    """Returns the last block before which these sources are to have given at most due.

    Where their share is zero for good, the first block without any.
    """
    end = self._settled
    settled = self._before(low, high, end)
    if due >= settled:
      rise = self._before(low, high, end + 1) - settled
      return end + ((due - settled) // rise if rise else 0)
    key = functools.partial(self._before, low, high)
    first, last, reach = min(near, end), min(near, end), 2
    while key(first) > due:
      first, reach = max(first - reach, 0), reach * 4
    while key(last) <= due:
      last, reach = min(last + reach, end), reach * 4
    return first + bisect.bisect_right(range(first, last), due, key=key) - 1

  def _before(self, low: int, high: int, block: int) -> int:
    """Returns what these sources are to give before a block, in the common unit."""
    examples = block * self.block
    return self._given(high, examples) - self._given(low, examples)

  def _given(self, sources: int, examples: int) -> int:
    """Returns the integral of the first sources' share, in the common unit."""
    s = self._segments[bisect.bisect_right(self._starts, examples) - 1]
    first, at = s.first[sources], examples - s.start
    # The integral of first + (last - first) x / length, times 2 length.
    twice = 2 * max(s.length, 1) * first + (s.last[sources] - first) * at
    return s.given[sources] + twice * at * s.scale


def scaled(schedule: Schedule, factor: Fraction) -> Schedule:
  """Returns the schedule with all weights multiplied."""
  if factor == 1:
    return schedule
  if _is_changed(schedule):
    return tuple(x if i % 2 else scaled(x, factor) for i, x in enumerate(schedule))
  if isinstance(schedule, Sequence):
    return tuple((example, Fraction(str(w)) * factor) for example, w in schedule)
  return Fraction(str(schedule)) * factor


def _is_changed(schedule: Schedule) -> TypeGuard[Sequence[Any]]:
  """Returns whether a schedule is several, with examples in between."""
  return isinstance(schedule, Sequence) and any(
    not isinstance(part, Sequence) for part in schedule
  )


def _changes(schedule: Schedule, source: int) -> dict[int, list[tuple[int, Fraction]]]:
  """Returns first example -> (example, weight) of what holds from there on, checked."""
  if not _is_changed(schedule):
    return {0: _knots(schedule, source)}
  starts = [0, *schedule[1::2]]
  numbers = all(isinstance(x, int) for x in starts)
  if len(schedule) % 2 == 0 or not numbers or sorted(set(starts)) != starts:
    raise ValueError(
      f"config.data.mixture[{source}]: the weight {schedule!r} must be "
      "(old, example, new), each example a whole number above the one before"
    )
  return {x: _knots(s, source) for x, s in zip(starts, schedule[::2])}


def _knots(schedule: Knots, source: int) -> list[tuple[int, Fraction]]:
  """Returns (example, weight) of a schedule, checked."""
  knots: list[tuple[Any, ...]] = [(0, schedule)]
  if isinstance(schedule, Sequence) and not isinstance(schedule, str):
    knots = [tuple(knot) for knot in schedule]
  where = f"config.data.mixture[{source}]: the weight {schedule!r}"
  numbers = all(isinstance(x, int | float | Fraction) for knot in knots for x in knot)
  if not knots or any(len(knot) != 2 for knot in knots) or not numbers:
    raise ValueError(
      f"{where} must be a number, ((example, weight), ...) or (old, example, new)"
    )
  starts = [knot[0] for knot in knots]
  if sorted(starts) != starts or starts[0] < 0 or any(int(x) != x for x in starts):
    raise ValueError(f"{where} must have whole numbers of examples, in order, from 0")
  weights = [knot[1] for knot in knots]
  if any(not math.isfinite(w) or w < 0 for w in weights):
    raise ValueError(f"{where} must be finite and not negative")
  # 0.1 is meant as a tenth, not as the nearest binary fraction.
  return [(int(x), Fraction(str(w))) for x, w in zip(starts, weights)]


def _weight(knots: list[tuple[int, Fraction]], example: int, after: bool) -> Fraction:
  """Returns the weight right after or right before an example."""
  starts = [x for x, _ in knots]
  i = (bisect.bisect_right if after else bisect.bisect_left)(starts, example)
  if i in (0, len(knots)):
    return knots[min(i, len(knots) - 1)][1]
  (x0, w0), (x1, w1) = knots[i - 1 : i + 1]
  return w0 + (w1 - w0) * Fraction(example - x0, x1 - x0)


def _segments(
  sources: Sequence[list[tuple[int, Fraction]]], since: int
) -> tuple[_Segment, ...]:
  """Returns the segments from an example on, which they count from."""
  starts = sorted({since, *(x for knots in sources for x, _ in knots if x > since)})

  def shares(example: int, after: bool) -> list[Fraction]:
    weights = [_weight(knots, example, after) for knots in sources]
    if not sum(weights):
      raise ValueError(
        f"config.data.mixture: all sources have weight 0 at example {example}"
      )
    return [w / sum(weights) for w in weights]

  # Before a jump to or from zero, one weight may be all there is.
  ends = [shares(x, after=False) for x in starts[1:]]
  begins = [shares(x, after=True) for x in starts]
  shared = math.lcm(*(w.denominator for row in (*ends, *begins) for w in row))
  lengths = [b - a for a, b in itertools.pairwise(starts)]
  common = math.lcm(*lengths)

  def sums(row: list[Fraction]) -> tuple[int, ...]:
    return tuple(itertools.accumulate((int(w * shared) for w in row), initial=0))

  out: list[_Segment] = []
  given: tuple[int, ...] = (0,) * (len(sources) + 1)
  for start, length, begin, end in zip(starts, lengths, begins, ends):
    first, last = sums(begin), sums(end)
    out.append(_Segment(start - since, length, given, first, last, common // length))
    # The mean of both ends times the length, in units of 1 / (2 shared common).
    given = tuple(g + (a + b) * length * common for g, a, b in zip(given, first, last))
  final = sums(begins[-1])
  return (*out, _Segment(starts[-1] - since, 0, given, final, final, common))
