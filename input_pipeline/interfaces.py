"""What a source and a transform look like to the pipeline."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

Example = dict[str, Any]  # one raw or transformed example; batch keys are arrays


class Source(Protocol):
  """Random access to raw examples; a frozen, picklable dataclass of its options.

  An example holds what the transforms read (`image_bytes`, `captions`, ...), and, where
  known, `id` (equal ids mean the same concept, hence a positive pair) and integers
  `label_<name>`, -1 where unlabelled. `[i]` raises `Drop` for an unreadable example.
  """

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns label name -> the names of its classes."""
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Example: ...


class Transform(Protocol):
  """Example in, example out; a frozen, picklable dataclass that uses numpy only.

  `reads` and `writes` name keys of the example; "a|b" in `reads` asks for either, and
  "partner" for another raw example of the source, drawn at random. A class may define
  `kept`, keys that are to be in the batch although they are no modality and no label;
  `defaults(config, options)`, a classmethod that returns the options which it takes
  from the rest of the config where the recipe does not give them; and `prepare(options,
  workdir, captions)`, one that makes files before the first example is read, out of the
  training captions that `captions()` yields, and returns the options with their paths.
  """

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the keys that the example must hold."""
    ...

  @property
  def writes(self) -> tuple[str, ...]:
    """Returns the keys that it sets."""
    ...

  def __call__(self, example: Example, rng: np.random.Generator) -> Example | None:
    """Returns the changed example, or None to drop it (or raises `Drop`)."""
    ...
