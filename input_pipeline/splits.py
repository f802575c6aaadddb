"""Splits without leaks: a family, whose examples are alike, is held out as a whole."""

import collections
from collections.abc import Hashable, Iterable, Mapping, Sequence
import hashlib


def join(keys: Iterable[str], *relations: Mapping[str, Hashable]) -> dict[str, str]:
  """Joins keys that share a value in any of the relations, transitively.

  Args:
    keys: all keys, ordered.
    *relations: key -> value; keys that a relation lacks are alone in it.

  Returns:
    key -> the first key, in the given order, of the set that it belongs to.
  """
  order = {key: i for i, key in enumerate(keys)}
  root = {key: key for key in order}

  def find(key: str) -> str:
    while root[key] != key:
      root[key] = root[root[key]]
      key = root[key]
    return key

  for relation in relations:
    groups = collections.defaultdict(list)
    for key in order:
      if key in relation:
        groups[relation[key]].append(key)
    for first, *others in groups.values():
      for other in others:
        a, b = sorted((find(first), find(other)), key=order.__getitem__)
        root[b] = a
  return {key: find(key) for key in order}


def check(split: str, test: float, validation: float) -> None:
  """Raises ValueError for shares that leave nothing to train on, or an empty split."""
  where = "config.data.options"
  if not 0 < test < 1:
    raise ValueError(f"{where}.test_share = {test} is not between 0 and 1")
  if not 0 <= validation < 1 - test:
    raise ValueError(
      f"{where}.validation_share = {validation} is not in [0, {1 - test:g}): 1 - "
      f"test_share = 1 - {test} is what there is, and some of it must train"
    )
  if split == "validation" and not validation:
    raise ValueError(
      f"the split 'validation' is empty: {where}.validation_share = 0.0; set it to "
      "the share of the examples to hold out, e.g. 0.12"
    )


def held_out(
  families: Sequence[Hashable], seed: int, test: float, validation: float
) -> dict[Hashable, str]:
  """Deals families to splits, in an order that only their names and the seed decide.

  Args:
    families: the family of each example; a str, a number or a tuple of these.
    seed: of the order.
    test: share of the examples; the first families in order, until it is reached.
    validation: share, of the next families; they would train otherwise, so that the
      test split never depends on it.

  Returns:
    family -> "train" | "validation" | "test".
  """
  sizes = collections.Counter(families)
  ordered = sorted(sizes, key=lambda family: _digest(seed, family))
  split_of: dict[Hashable, str] = {}
  wanted = (("test", test * len(families)), ("validation", validation * len(families)))
  at = 0
  for split, size in wanted:
    filled = 0
    while at < len(ordered) and filled < size:
      split_of[ordered[at]] = split
      filled += sizes[ordered[at]]
      at += 1
  return split_of | dict.fromkeys(ordered[at:], "train")


def _digest(seed: int, family: Hashable) -> bytes:
  return hashlib.blake2b(f"{seed} {family!r}".encode(), digest_size=8).digest()
