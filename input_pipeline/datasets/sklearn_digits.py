"""1,797 handwritten digits of 8x8 pixels, out of scikit-learn."""

from collections.abc import Mapping
import dataclasses

import numpy as np

from input_pipeline import small_pictures
from input_pipeline.recipe import Recipe

RECIPE = Recipe(
  title="Digits of 8x8 pixels",
  client="pip",
  package="scikit-learn==1.9.1",
  folder="sklearn/datasets/data",
  licence="CC BY 4.0",
  attribution="Optical recognition of handwritten digits by E. Alpaydin and C. Kaynak, "
  "UCI Machine Learning Repository",
  keys="image (8x8, grey), English name of the digit",
  rule="at random; identical pictures stay together",
  traps="13 writers, who are not known: one may be on both sides",
)
_LEVELS = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(small_pictures.Installed):
  """The digits, uint8[8, 8], with the levels 0 to 16 stretched to 0 to 255."""

  about = RECIPE

  def parts(self) -> Mapping[str, small_pictures.Pictures]:
    """Returns the rows of the table: 64 levels, then the digit."""
    lines = self.table("digits.csv.gz").decode("ascii").splitlines()
    rows = np.loadtxt(lines, np.int32, delimiter=",", ndmin=2)
    images = (rows[:, :-1] * 255 // _LEVELS).astype(np.uint8).reshape(-1, 8, 8)
    return {"": small_pictures.Pictures(images, rows[:, -1])}
