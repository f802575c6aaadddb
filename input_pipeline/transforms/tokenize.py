"""A caption to ids of the run's tokenizer, and to its letter n-grams."""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any
import zlib

import numpy as np

from input_pipeline import cleaning, untrusted
from input_pipeline import tokenizer as tokenizers
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example
from model import catalogue


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `<modality>` int32[length + ngrams] and `<modality>_mask` bool[length].

  0 is padding in the n-grams behind the ids, and in the ids unless the tokenizer has
  another one; the mask is of the ids.

  Drops "empty caption" where the tokenizer's normalisation leaves nothing, and "caption
  is not UTF-8".

  Attributes:
    tokenizer: path of the model; taken from config.data.tokenizer.
    modality: of config.model.modalities; gives the names of the keys it writes.
    length: tokens; taken from the modality. Longer captions are cut, but still ended.
    vocab: number of ids; taken from the modality, and checked against the model.
    pad: the id that the mask leaves out; taken from the modality. -1: none.
    stop: the id behind whose first the mask is False; taken from the modality's `eos`.
      -1: none.
    ngrams: most letter n-grams of the caption; taken from the modality. 0 is none.
    ngram_rows: what they are hashed into; taken from the modality.
    eos: whether to end the caption with the end ids (which pool = "last" reads).
    begin: ids before a caption; None: as the tokenizer's file has it.
    end: ids behind it; None: as the tokenizer's file has it.
    fill: the id of padding; None: as the tokenizer's file has it.
    clean: what is done to a caption first: a name in input_pipeline/cleaning.py.
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
  pad: int = tokenizers.PAD
  stop: int = -1
  eos: bool = True
  begin: tuple[int, ...] | None = None
  end: tuple[int, ...] | None = None
  fill: int | None = None
  clean: str = "none"
  nbest: int = 1
  key: str = "caption"

  def __post_init__(self):
    if self.clean not in cleaning.CLEAN:
      raise ValueError(
        f"tokenize: clean = {self.clean!r}: "
        f"{catalogue.near_misses(self.clean, list(cleaning.CLEAN))}"
      )

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
    """Returns the tokenizer's path, and what config.model says of the modality."""
    given = {"tokenizer": config.data.tokenizer}
    modality = config.model.modalities.get(options.get("modality", "text"))
    if modality is None:
      return given
    keys = ("length", "vocab", "ngrams", "ngram_rows", "pad")
    return given | {key: modality[key] for key in keys} | {"stop": modality.eos}

  @functools.cached_property
  def _model(self) -> tokenizers.Tokenizer:
    model = tokenizers.load(self.tokenizer, self.vocab, self.modality)
    fill = model.fill if self.fill is None else self.fill
    if self.pad not in (-1, fill):
      where = f"config.model.modalities.{self.modality}.pad"
      raise ValueError(
        f"texts are padded with {fill} (by {self.tokenizer}, or `fill` of tokenize), "
        f"but {where} = {self.pad}, so that padding would be read: set it to {fill}, "
        "or to -1 where the model reads padding too"
      )
    return model

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k != "_model"}

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with ids and mask."""
    if not untrusted.is_utf8(example[self.key]):
      raise Drop("caption is not UTF-8")
    text = cleaning.CLEAN[self.clean](example[self.key])
    ids = self._model.encode(text, nbest=self.nbest, draw=rng.random())
    if not ids:
      raise Drop("empty caption")
    row, mask = self._row(ids)
    if self.ngrams:
      grams = np.zeros(self.ngrams, np.int32)
      found = letter_ngrams(example[self.key], self.ngram_rows)[: self.ngrams]
      grams[: len(found)] = found
      row = np.concatenate([row, grams])
    return example | {self.modality: row, f"{self.modality}_mask": mask}

  def blank(self) -> Example:
    """Returns what a text without ids would be, which a call drops: its ends alone."""
    row, mask = self._row([])
    row = np.concatenate([row, np.zeros(self.ngrams, np.int32)])
    return {self.modality: row, f"{self.modality}_mask": mask}

  def _row(self, ids: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns int32[length] and bool[length], as `model.layers.stem.Tokens` has it."""
    model = self._model
    begin = model.begin if self.begin is None else self.begin
    end = model.end if self.end is None else self.end
    fill = model.fill if self.fill is None else self.fill
    end = end if self.eos else ()
    (row,) = tokenizers.padded([ids], self.length, begin, end, fill)
    mask = row != self.pad if self.pad >= 0 else np.ones(len(row), bool)
    if self.stop >= 0:
      stops = np.cumsum(row == self.stop)
      mask &= (stops == 0) | ((row == self.stop) & (stops == 1))
    return row, mask


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
