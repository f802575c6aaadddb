"""Queries of graded relevance: an example's own name, or that of a class it is of."""

import dataclasses
import zlib

import numpy as np

from input_pipeline.interfaces import Example
from model import catalogue


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `caption`, how relevant the example is to it, and which query it is.

  `grade` f32[]; `query` i32[], equal for equal captions but for their case. A search
  for "animal mammal" finds the cat, but it fits the name "cat" better.

  Attributes:
    levels: (which, grade, weight) each: "" is the caption as it is, others are keys of
      `class_names`. One is drawn in proportion to the weights; a blank name never is.

  Raises:
    ValueError: no level "", which every example has.
  """

  levels: tuple[tuple[str, float, float], ...] = (
    ("", 3.0, 0.5),
    ("subgroup", 2.0, 0.3),
    ("group", 1.0, 0.2),
  )

  reads = ("caption", "class_names")
  writes = ("caption", "grade", "query")
  kept = ("grade", "query")

  def __post_init__(self):
    if not any(which == "" and weight > 0 for which, _, weight in self.levels):
      raise ValueError(
        f"graded_query.levels = {self.levels} must have ('', grade, weight > 0): the "
        "caption, for examples of no class"
      )

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with the query in the place of its caption.

    Raises:
      ValueError: a level that is none of `class_names`.
    """
    names = {**example["class_names"], "": example["caption"]}
    for level, _, _ in self.levels:
      if level not in names:
        near = catalogue.near_misses(level, sorted(example["class_names"]))
        raise ValueError(
          f"graded_query.levels: {level!r} is none of the example's class_names; {near}"
        )
    levels = [(names[k], grade, w) for k, grade, w in self.levels if names[k]]
    edges = np.cumsum([w for _, _, w in levels])
    at = int(np.searchsorted(edges, rng.random() * edges[-1], side="right"))
    caption, grade, _ = levels[min(at, len(levels) - 1)]
    query = zlib.crc32(caption.casefold().encode()) & 0x7FFFFFFF
    return example | {"caption": caption, "grade": np.float32(grade), "query": query}
