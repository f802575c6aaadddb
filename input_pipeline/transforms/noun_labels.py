"""The classes that a caption names: words stand for WordNet's synsets (CatLIP).

arXiv 2404.15653 keeps the nouns of a caption whose first sense in WordNet is the word
itself, and of these the most frequent synsets of the corpus. WordNet does not come with
a package that we install, so here a class is a word: case-folded, in the singular by
plain rules, and not one of the English words that only join others. Verbs and
adjectives that are frequent enough are classes too, and words that mean two things are
one.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import functools
import re
from typing import Any

from etils import epath
import numpy as np

from input_pipeline import atomic
from input_pipeline.interfaces import Example

_WORD = re.compile(r"[^\W\d_]{2,}")
_JOINING = """
a about above after all also an and another any are as at away back be because been
before behind being below beside between both but by can could did do does doing down
each else every few for from further get has have having he her here hers him his how
if in into is it its just like made many may me more most much my near new no non nor
not of off on once one only onto or other our out over own per rather same she should
since so some such than that the their them then there these they this those through
to together too toward two under until up upon us very via was we were what when where
which while who whose why will with within without would you your
"""
_IRREGULAR = dict(
  children="child",
  feet="foot",
  geese="goose",
  knives="knife",
  leaves="leaf",
  men="man",
  mice="mouse",
  people="person",
  shelves="shelf",
  teeth="tooth",
  wolves="wolf",
  women="woman",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `label_nouns` int32[most]: the classes of the caption, then -1.

  Attributes:
    classes: at most so many, the most frequent words of the training captions; as many
      as the head "prototypes" has.
    vocabulary: path of a file of words, one a line; a class is the number of its line.
      Made of the training captions by `prepare` where there is none.
    min_count: captions that a word must be in to be a class.
    most: classes of one caption; further ones are left out.
    key: what it reads.
  """

  classes: int
  vocabulary: str = "{workdir}/nouns.txt"
  min_count: int = 2
  most: int = 8
  key: str = "caption"

  writes = ("label_nouns",)

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the key of the caption."""
    return (self.key,)

  @classmethod
  def prepare(
    cls,
    options: Mapping[str, Any],
    workdir: str,
    captions: Callable[[], Iterable[str]],
  ) -> dict[str, Any]:
    """Returns the options with the path of a vocabulary that exists.

    Args:
      options: of the recipe.
      workdir: takes the place of "{workdir}" in the path.
      captions: gives those of the training split.

    Raises:
      ValueError: no word is frequent enough.
    """
    made = cls(**options)
    path = made.vocabulary.replace("{workdir}", workdir)
    if not epath.Path(path).exists():
      words = frequent(captions(), made.classes, made.min_count)
      if not words:
        raise ValueError(
          f"noun_labels: no word is in {made.min_count} training captions; lower its "
          "min_count in config.data.transforms"
        )
      atomic.write(path, "".join(f"{w}\n" for w in words).encode())
    return {**options, "vocabulary": path}

  @functools.cached_property
  def _classes(self) -> dict[str, int]:
    words = read(self.vocabulary)
    if len(words) > self.classes:
      raise ValueError(
        f"{self.vocabulary} has {len(words)} words, but noun_labels has classes = "
        f"{self.classes}: set it, and the head's, to {len(words)}, or remove the file"
      )
    return {word: i for i, word in enumerate(words)}

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k != "_classes"}

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with its classes, which may be none."""
    del rng
    known = [self._classes[w] for w in nouns(example[self.key]) if w in self._classes]
    labels = np.full(self.most, -1, np.int32)
    labels[: len(known)] = known[: self.most]
    return example | {"label_nouns": labels}


def nouns(text: str) -> list[str]:
  """Returns the different words of a text that may be nouns, in order."""
  words = (w for w in _WORD.findall(text.casefold()) if w not in _joining())
  return list(dict.fromkeys(map(singular, words)))


@functools.cache
def _joining() -> frozenset[str]:
  return frozenset(_JOINING.split())


def singular(word: str) -> str:
  """Returns the singular of an English noun, by rules; others mostly stay as they are.

  What a rule gets wrong ("lens", "gas") it gets wrong everywhere alike.
  """
  if word in _IRREGULAR:
    return _IRREGULAR[word]
  if len(word) < 4 or word.endswith(("ss", "us", "is")) or not word.endswith("s"):
    return word
  if word.endswith("ies") and len(word) > 4:
    return word[:-3] + "y"
  if word.endswith(("ches", "shes", "sses", "xes", "zes", "oes")):
    return word[:-2]
  return word[:-1]


def frequent(captions: Iterable[str], most: int, min_count: int = 1) -> list[str]:
  """Returns at most `most` words by the captions they are in, then by alphabet.

  The order of the captions changes nothing, so every host finds the same.
  """
  counts: dict[str, int] = {}
  for caption in captions:
    for word in nouns(caption):
      counts[word] = counts.get(word, 0) + 1
  common = [word for word, n in counts.items() if n >= min_count]
  return sorted(common, key=lambda word: (-counts[word], word))[:most]


def read(path: str) -> list[str]:
  """Returns the words of a vocabulary file.

  Raises:
    FileNotFoundError: there is none; says how it comes about.
  """
  if not epath.Path(path).exists():
    raise FileNotFoundError(
      f"no vocabulary at {path!r} (noun_labels of config.data.transforms): "
      "input_pipeline.pipeline.prepare(config, workdir) makes it of the captions"
    )
  return epath.Path(path).read_text().split()


def rows(names: Sequence[str], words: Sequence[str]) -> np.ndarray:
  """Returns int32[names]: the class of each name, -1 where none fits.

  For model.heads.prototypes.transfer. Of several known words it is the last, which in
  English names the thing: "hot dog" is a dog.
  """
  place = {word: i for i, word in enumerate(words)}
  found = [[place[w] for w in nouns(name) if w in place] for name in names]
  return np.array([own[-1] if own else -1 for own in found], np.int32)
