"""Examples that are in memory already, for notebooks and tests.

from input_pipeline.sources import in_memory
in_memory.put("train", image=images, captions=names)  # uint8[n, h, w, 3], n texts

c.data.source = "in_memory"
c.data.options = dict(name="{split}")
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from input_pipeline.interfaces import Example
from input_pipeline.untrusted import plain
from model import catalogue

_KEPT: dict[str, "_Columns"] = {}  # a config is written as JSON: it can only name them


@dataclasses.dataclass(frozen=True)
class _Columns:
  values: Mapping[str, Any]
  classes: Mapping[str, tuple[str, ...]]


def put(
  name: str,
  *,
  classes: Mapping[str, Sequence[str]] | None = None,
  **columns: np.ndarray | Sequence[Any],
) -> None:
  """Keeps examples under a name, for `Source`, until the process ends.

  Args:
    name: replaces those that had it.
    classes: label name -> class names.
    **columns: key of the example -> its values, one an example: an array whose first
      axis counts examples, or a list.

  Raises:
    ValueError: no columns, or of different lengths.
  """
  lengths = {key: len(values) for key, values in columns.items()}
  if len(set(lengths.values())) != 1:
    raise ValueError(f"columns of {name!r} need one length; got {lengths}")
  names = {k: tuple(v) for k, v in (classes or {}).items()}
  _KEPT[name] = _Columns(columns, names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
  """The examples that were `put` under a name; workers get a copy of them.

  Attributes:
    name: of `put`; "{split}" is replaced.
    split: for "{split}" in name.

  Raises:
    ValueError: nothing was put under this name in this process.
  """

  name: str
  split: str = "train"
  _kept: _Columns = dataclasses.field(init=False, repr=False, compare=False)

  def __post_init__(self):
    name = self.name.replace("{split}", self.split)
    if name not in _KEPT:
      raise ValueError(
        f"config.data.options.name: nothing was put under {name!r} in this process; "
        f"{catalogue.near_misses(name, list(_KEPT))}. Call in_memory.put first"
      )
    object.__setattr__(self, "_kept", _KEPT[name])

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns label name -> class names."""
    return self._kept.classes

  def __len__(self) -> int:
    return len(next(iter(self._kept.values.values())))

  def __getitem__(self, i: int) -> Example:
    if not 0 <= i < len(self):
      raise IndexError(f"example {i} of {len(self)}")
    return {key: plain(values[i]) for key, values in self._kept.values.items()}
