"""One caption out of many: a language, then a wording."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import numpy as np

from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes a caption (str) from captions: {language: texts}, texts, or one text.

  Texts are str or UTF-8 bytes; blank ones do not count. Drops "empty caption" where
  nothing is left.

  Attributes:
    train: samples; False takes the first caption of `language`, or else of the first.
    language: of evaluation, and the one that `share` is about.
    share: probability of `language`; the others share the rest by weight. None leaves
      it to the weights.
    weights: (language, weight); a language that is not named weighs 1.
    main: probability of the first caption of the language; else all are equally likely.
    word_dropout: probability that a word is left out; one word is always kept.
    lowercase: whether to lower the case. The tokenizer folds it by itself.
    captions: the key that it reads.
    key: the key that it writes; a second one gives a batch texts of two languages.
  """

  train: bool = True
  language: str = "en"
  share: float | None = None
  weights: tuple[tuple[str, float], ...] = ()
  main: float = 0.0
  word_dropout: float = 0.0
  lowercase: bool = False
  captions: str = "captions"
  key: str = "caption"

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
    choices = _texts(captions.get(self._pick(tuple(captions), language), ()))
    if not choices:  # rare, hence not looked at in every language beforehand
      captions = {k: t for k, v in captions.items() if (t := _texts(v))}
      if not captions:
        raise Drop("empty caption")
      choices = captions[self._pick(tuple(captions), language)]
    first = not self.train or main < self.main
    caption = choices[0 if first else int(wording * len(choices))]
    if self.train and self.word_dropout:
      caption = self._shortened(caption, rng)
    return example | {self.key: caption.lower() if self.lowercase else caption}

  def _pick(self, names: tuple[str, ...], draw: float) -> str:
    """Returns a language, by probability where training."""
    if not names:
      return ""
    if not self.train:
      return self.language if self.language in names else names[0]
    edges = _edges(self, names)
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
  if not p.sum() > 0:
    raise ValueError(f"sample_caption: every language of {names} has weight 0")
  return np.cumsum(p)


def _texts(value: Any) -> tuple[str, ...]:
  """Returns the captions that say something, in order."""
  if isinstance(value, str | bytes):
    value = (value,)
  texts = (t.decode("utf-8", "replace") if isinstance(t, bytes) else t for t in value)
  return tuple(t for t in texts if isinstance(t, str) and t.strip())
