"""A caption to ids of the run's sentencepiece model."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

import numpy as np

from input_pipeline import tokenizer as tokenizers
from input_pipeline.drop import Drop
from input_pipeline.interfaces import Example


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform:
  """Writes `<modality>` int32[length], 0 is padding, and `<modality>_mask` of real ids.

  Drops "empty caption" where the tokenizer's normalisation leaves nothing.

  Attributes:
    tokenizer: path of the model; taken from config.data.tokenizer.
    modality: of config.model.modalities; gives the names of the keys it writes.
    length: tokens; taken from the modality. Longer captions are cut, but still ended.
    vocab: number of ids; taken from the modality, and checked against the model.
    eos: whether to end the caption with the end token (which pool = "last" reads).
    nbest: samples one of the n most likely segmentations (arXiv 1804.10959); 1 is the
      best one. Unigram models only.
    key: what it reads.
  """

  tokenizer: str
  length: int
  vocab: int
  modality: str = "text"
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
    return given | {"length": modality.length, "vocab": modality.vocab}

  @functools.cached_property
  def _model(self) -> tokenizers.Tokenizer:
    return tokenizers.load(self.tokenizer, self.vocab, self.modality)

  def __getstate__(self) -> dict[str, Any]:
    return {k: v for k, v in self.__dict__.items() if k != "_model"}

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with ids and mask."""
    ids = self._model.encode(example[self.key], nbest=self.nbest, draw=rng.random())
    if not ids:
      raise Drop("empty caption")
    row, mask = self._model.pad([ids], self.length, self.eos)
    return example | {self.modality: row[0], f"{self.modality}_mask": mask[0]}
