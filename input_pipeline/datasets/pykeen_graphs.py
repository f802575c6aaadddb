"""Small knowledge graphs as pairs of texts, out of PyKEEN: UMLS, Kinships, Nations."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from input_pipeline import recipe
from input_pipeline.interfaces import Example
from model import catalogue

RECIPE = recipe.Recipe(
  title="Knowledge graphs",
  client="pip",
  package="pykeen==1.11.1",
  folder="pykeen/datasets",
  licence="MIT (the package)",
  attribution="UMLS semantic network, U.S. National Library of Medicine; Kinships, "
  "W. Denham; Nations, R. J. Rummel; C. Kemp and others; PyKEEN",
  keys="head, relation, tail, query (head and relation), captions (tail)",
  rule="the sets' own, validation included",
  traps="`name` picks umls, kinships or nations; some relations are inverses of "
  "others, so that train gives away parts of test; all things are on all sides",
)
NAMES = ("umls", "kinships", "nations")
_FILES = {"train": "train", "validation": "valid", "test": "test"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(recipe.Installed):
  """Examples: head, relation, tail, query {"en": (text,)}, captions {"en": (text,)}.

  Attributes:
    name: of the graph, "umls" | "kinships" | "nations".
  """

  name: str = "umls"

  about = RECIPE

  def __post_init__(self):
    super().__post_init__()
    if self.name not in NAMES:
      raise ValueError(
        f"config.data.options.name: no {self.name!r}; "
        f"{catalogue.near_misses(self.name, list(NAMES))}"
      )

  def entries(self) -> Sequence[recipe.Entry]:
    """Returns (head, relation, tail) of the three parts."""
    return [
      recipe.Entry(tuple(line.split("\t")), line, part)
      for part, file in _FILES.items()
      for line in self.table(f"{self.name}/{file}.txt").decode().splitlines()
    ]

  def example(self, value: Any) -> Example:
    """Returns the triple, and in words what it says."""
    head, relation, tail = value
    query, answer = (x.replace("_", " ") for x in (f"{head} {relation}", tail))
    return {
      "head": head,
      "relation": relation,
      "tail": tail,
      "query": {"en": (query,)},
      "captions": {"en": (answer,)},
    }
