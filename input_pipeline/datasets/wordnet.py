"""WordNet 3.0: words with their glosses, and the links between them."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from input_pipeline import recipe
from input_pipeline.interfaces import Example

RECIPE = recipe.Recipe(
  title="WordNet 3.0",
  client="apt",
  package="wordnet-base=1:3.0-37",
  folder="usr/share/wordnet",
  licence="WordNet 3.0 licence (as BSD; keep the notice)",
  attribution="WordNet 3.0 (c) 2006 Princeton University",
  keys="query (the words), captions (the gloss), links, part of speech",
  rule="senses that lead with one word stay together",
  traps="other words of a sense may still lead one on the other side",
)
PARTS = ("noun", "verb", "adj", "adv")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source(recipe.Installed):
  """Examples: query {"en": words}, captions {"en": (gloss,)}, key, links, label_part.

  `links` are (symbol, key of the other sense), as in wninput(5WN).
  """

  about = RECIPE

  def entries(self) -> Sequence[recipe.Entry]:
    """Returns (part, line) of all senses; the family is their first word."""
    return [
      recipe.Entry((part, line), line.split(maxsplit=5)[4].lower())
      for part in PARTS
      for line in self.table(f"data.{part}").decode("utf-8", "replace").splitlines()
      if line[:1] != " "  # those of the licence
    ]

  def example(self, value: Any) -> Example:
    """Returns a line's words, gloss and links."""
    part, line = value
    head, _, gloss = line.partition("|")
    offset, _, kind, count, *rest = head.split()
    words = rest[: 2 * int(count, 16) : 2]  # each with a number after it
    links = rest[2 * int(count, 16) + 1 :]
    fours = range(0, 4 * int(rest[2 * int(count, 16)]), 4)
    return {
      "query": {"en": tuple(w.replace("_", " ") for w in words)},
      "captions": {"en": (gloss.strip(),)},
      "key": f"{'a' if kind == 's' else kind}{offset}",
      "links": tuple((links[i], f"{links[i + 2]}{links[i + 1]}") for i in fours),
      "label_part": PARTS.index(part),
    }

  @property
  def classes(self) -> Mapping[str, tuple[str, ...]]:
    """Returns the parts of speech."""
    return {"part": PARTS}
