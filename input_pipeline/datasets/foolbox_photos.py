"""60 photos of ImageNet and CIFAR, out of foolbox: for smoke tests only."""

from collections.abc import Sequence
import dataclasses
import re
from typing import Any

from input_pipeline import recipe, untrusted
from input_pipeline.interfaces import Example

RECIPE = recipe.Recipe(
  title="60 photos",
  client="pip",
  package="foolbox==3.3.4",
  folder="foolbox/data",
  licence="MIT (the package); the photos' own terms are not stated",
  attribution="ImageNet; CIFAR-10 and CIFAR-100 by Alex Krizhevsky",
  keys="image_bytes (20 JPEG, 40 PNG), class of imagenet, cifar10 or cifar100",
  rule="at random",
  traps="classes are numbers, and there are no captions: no figure means anything here",
)
_SETS = ("imagenet", "cifar10", "cifar100")
_NAME = re.compile(rf"({'|'.join(_SETS)})_\d+_(\d+)\.(?:png|jpg)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(recipe.Installed):
  """Examples: image_bytes, and label_<set>, -1 for the other sets."""

  about = RECIPE

  def entries(self) -> Sequence[recipe.Entry]:
    """Returns the names of the photos, each its own family."""
    names = filter(_NAME.fullmatch, untrusted.below(str(self.folder)))
    return [recipe.Entry(name, name) for name in names]

  def example(self, value: Any) -> Example:
    """Returns the photo, and the class in its name."""
    found = _NAME.fullmatch(value)
    assert found  # `entries` lists no others
    labels = {f"label_{name}": -1 for name in _SETS}
    labels[f"label_{found[1]}"] = int(found[2])
    return {"image_bytes": self.read(value), **labels}
