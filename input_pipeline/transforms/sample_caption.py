"""One caption out of many: a language, then a wording."""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import math
from typing import Any

import numpy as np

from input_pipeline import untrusted
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes a caption (str) from captions: {language: texts}, texts, or one text.

  Texts are str or UTF-8 bytes; blank ones and those that are not UTF-8 do not count.
  Drops "empty caption" where nothing is left, "no caption of a wanted language" where
  only languages of weight 0 have any, or "caption is not UTF-8".

  Attributes:
    train: samples; False takes the first caption of `language`, or else of the first.
    language: of evaluation, and the one that `share` is about.
    share: probability of `language`; the others share the rest by weight. None leaves
      it to the weights.
    weights: (language, weight); a language that is not named weighs 1.
    main: probability of the first caption of the language; else all are equally likely.
    word_dropout: probability that a word is left out; one word is always kept.
    max_chars: a longer caption is cut there, or at the last space before: tokens see
      its beginning anyway, and the rest costs time and memory. 0 never cuts.
    lowercase: whether to lower the case. The tokenizer folds it by itself.
    captions: the key that it reads.
    key: the key that it writes; a second one gives a batch texts of two languages.

  Raises:
    ValueError: a probability outside [0, 1], or a weight below 0.
  """

  train: bool = True
  language: str = "en"
  share: float | None = None
  weights: tuple[tuple[str, float], ...] = ()
  main: float = 0.0
  word_dropout: float = 0.0
  max_chars: int = 8192
  lowercase: bool = False
  captions: str = "captions"
  key: str = "caption"

  def __post_init__(self):
    for name in ("share", "main", "word_dropout"):
      value = getattr(self, name)
      if value is not None and not 0 <= value <= 1:
        raise ValueError(f"sample_caption: {name} = {value} must be in [0, 1]")
    for language, weight in self.weights:
      if not 0 <= weight < math.inf:
        raise ValueError(
          f"sample_caption: weights: {language!r} has {weight}, expected 0 or more"
        )

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the key of the captions."""
    return (self.captions,)

  @property
  def writes(self) -> tuple[str, ...]:
    """Returns the key of the caption."""
    return (self.key,)

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with the caption, a str that is not blank."""
    captions = example[self.captions]
    if not isinstance(captions, Mapping):
      captions = {self.language: captions}
    language, main, wording = rng.random(3) if self.train else (0.0, 0.0, 0.0)
    picked = self._pick(tuple(captions), language)
    choices = () if picked is None else _texts(captions[picked])
    if not choices:  # rare, hence not looked at in every language beforehand
      usable = {k: t for k, v in captions.items() if (t := _texts(v))}
      if not usable:
        raise Drop(_why_empty(captions))
      picked = self._pick(tuple(usable), language)
      if picked is None:
        raise Drop("no caption of a wanted language")
      choices = usable[picked]
    first = not self.train or main < self.main
    caption = choices[0 if first else int(wording * len(choices))]
    if self.max_chars and len(caption) > self.max_chars:
      caption = _cut(caption.strip(), self.max_chars)
    if self.train and self.word_dropout:
      caption = self._shortened(caption, rng)
    return example | {self.key: caption.lower() if self.lowercase else caption}

  def _pick(self, names: tuple[str, ...], draw: float) -> str | None:
    """Returns a language, by probability where training; None if none has any."""
    if not names:
      return None
    if not self.train:
      return self.language if self.language in names else names[0]
    edges = _edges(self, names)
    if not edges[-1] > 0:
      return None
    at = int(np.searchsorted(edges, draw * edges[-1], side="right"))
    return names[min(at, len(names) - 1)]

  def _shortened(self, caption: str, rng: np.random.Generator) -> str:
    words = caption.split()
    draws = rng.random(len(words))
    kept = [w for w, u in zip(words, draws) if u >= self.word_dropout]
    return " ".join(kept or [words[int(np.argmax(draws))]])


@functools.lru_cache(maxsize=1024)
def _edges(transform: Transform, names: tuple[str, ...]) -> np.ndarray:
  """Returns f64[languages], the cumulative probabilities."""
  weights = dict(transform.weights)
  p = np.array([weights.get(name, 1.0) for name in names], np.float64)
  if transform.share is not None and transform.language in names:
    at = names.index(transform.language)
    p[at] = 0.0
    p *= (1 - transform.share) / (p.sum() or 1.0)
    p[at] = transform.share
  return np.cumsum(p)


def _cut(caption: str, most: int) -> str:
  """Returns the first characters of a caption, up to a space if there is one."""
  cut = caption[: most + 1]
  return (cut.rpartition(" ")[0].rstrip() or cut[:most]) if len(cut) > most else cut


def _texts(value: Any) -> tuple[str, ...]:
  """Returns the captions that say something, in order."""
  if isinstance(value, str | bytes):
    value = (value,)
  if not isinstance(value, Iterable):  # a number, or nothing
    return ()
  return tuple(t for t in map(_text, value) if t and t.strip())


def _text(value: Any) -> str | None:
  """Returns a caption, or None if it is none or cannot be written in UTF-8."""
  if isinstance(value, bytes):
    try:
      return value.decode()
    except UnicodeDecodeError:
      return None
  return value if isinstance(value, str) and untrusted.is_utf8(value) else None


def _why_empty(captions: Mapping[str, Any]) -> str:
  for value in captions.values():
    texts = (value,) if isinstance(value, str | bytes) else value
    for text in texts if isinstance(texts, Iterable) else ():
      if isinstance(text, str | bytes) and _text(text) is None:
        return "caption is not UTF-8"
  return "empty caption"
