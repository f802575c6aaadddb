"""A caption to ids of the run's sentencepiece model, and to its letter n-grams."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any
import zlib

import numpy as np

from input_pipeline import tokenizer as tokenizers
from input_pipeline import untrusted
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `<modality>` int32[length + ngrams] and `<modality>_mask` bool[length].

  0 is padding, in the ids and in the n-grams behind them; the mask is of the ids.

  Drops "empty caption" where the tokenizer's normalisation leaves nothing, and "caption
  is not UTF-8".

  Attributes:
    tokenizer: path of the model; taken from config.data.tokenizer.
    modality: of config.model.modalities; gives the names of the keys it writes.
    length: tokens; taken from the modality. Longer captions are cut, but still ended.
    vocab: number of ids; taken from the modality, and checked against the model.
    ngrams: most letter n-grams of the caption; taken from the modality. 0 is none.
    ngram_rows: what they are hashed into; taken from the modality.
    eos: whether to end the caption with the end token (which pool = "last" reads).
    nbest: samples one of the n most likely segmentations (arXiv 1804.10959); 1 is the
      best one. Unigram models only.
    key: what it reads.
  """

  tokenizer: str
  length: int
  vocab: int
  modality: str = "text"
  ngrams: int = 0
  ngram_rows: int = 32_768
  eos: bool = True
  nbest: int = 1
  key: str = "caption"

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the key of the caption."""
    return (self.key,)

  @property
  def writes(self) -> tuple[str, ...]:
    """Returns the keys of the ids and of their mask."""
    return (self.modality, f"{self.modality}_mask")

  @classmethod
  def defaults(cls, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the tokenizer's path, and length and vocabulary of the modality."""
    given = {"tokenizer": config.data.tokenizer}
    modality = config.model.modalities.get(options.get("modality", "text"))
    if modality is None:
      return given
    keys = ("length", "vocab", "ngrams", "ngram_rows")
    return given | {key: modality[key] for key in keys}

  @functools.cached_property
  def _model(self) -> tokenizers.Tokenizer:
    return tokenizers.load(self.tokenizer, self.vocab, self.modality)

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k != "_model"}

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with ids and mask."""
    if not untrusted.is_utf8(example[self.key]):
      raise Drop("caption is not UTF-8")
    ids = self._model.encode(example[self.key], nbest=self.nbest, draw=rng.random())
    if not ids:
      raise Drop("empty caption")
    rows, masks = self._model.pad([ids], self.length, self.eos)
    row = rows[0]
    if self.ngrams:
      grams = np.zeros(self.ngrams, np.int32)
      found = letter_ngrams(example[self.key], self.ngram_rows)[: self.ngrams]
      grams[: len(found)] = found
      row = np.concatenate([row, grams])
    return example | {self.modality: row, f"{self.modality}_mask": masks[0]}


@functools.lru_cache(maxsize=1 << 14)
def letter_ngrams(text: str, rows: int) -> tuple[int, ...]:
  """Returns the words' n-grams of 3 to 5 letters and the words, hashed to [1, rows).

  Words are case-folded and marked with < and > at their ends, as in fastText (arXiv
  1607.04606, section 3.2). The hash is the same in every process and on every machine.
  """
  grams = []
  for word in text.casefold().split():
    word = f"<{word}>"
    for n in (3, 4, 5):
      grams += [word[i : i + n] for i in range(len(word) - n + 1)]
    grams.append(word)
  return tuple(1 + zlib.crc32(g.encode()) % (rows - 1) for g in grams)
