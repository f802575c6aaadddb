"""The text vocabulary: a sentencepiece model, trained on the run's own captions.

Ids: 0 padding, 1 unknown, 2 begin, 3 end, then 256 bytes (a character that the model
has not seen is spelt in UTF-8 bytes, so no id is ever lost), then pieces.
"""

import collections
from collections.abc import Iterable, Sequence
import functools
import hashlib
import io
import unicodedata

from etils import epath
import numpy as np
import sentencepiece

from input_pipeline import atomic

PAD, UNKNOWN, BEGIN, END = range(4)


def train_tokenizer(
  captions: Iterable[str],
  path: str,
  vocab: int,
  *,
  kind: str = "unigram",
  coverage: float = 0.9995,
) -> str:
  """Trains a model with exactly `vocab` ids and writes it atomically.

  The result depends on the set of captions only, not on their order, repetitions, the
  machine's cores or the process: every host of a job may train its own.

  Args:
    captions: in any order and any languages.
    path: of the model; an existing file is replaced.
    vocab: number of ids, 260 for padding, unknown, ends and bytes included.
    kind: "unigram" | "bpe".
    coverage: share of the text whose characters get a piece of their own, not bytes;
      less, down to 0.98, where they would take more than half of the vocabulary.

  Returns:
    The path.

  Raises:
    ValueError: no captions, or a vocabulary that these captions cannot fill.
  """
  lines = sorted({" ".join(c.split()) for c in captions} - {""})
  if not lines:
    raise ValueError("no captions to train config.data.tokenizer on")
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=iter(lines),
      model_writer=model,
      vocab_size=vocab,
      model_type=kind,
      character_coverage=max(0.98, min(coverage, _affordable_coverage(lines, vocab))),
      byte_fallback=True,
      normalization_rule_name="nmt_nfkc_cf",
      pad_id=PAD,
      unk_id=UNKNOWN,
      bos_id=BEGIN,
      eos_id=END,
      num_threads=1,
      shuffle_input_sentence=False,
      minloglevel=2,
    )
  except (RuntimeError, ValueError, OSError) as e:
    raise ValueError(
      f"config.model.modalities.text.vocab = {vocab} does not suit {len(lines)} "
      f"distinct captions: {str(e).splitlines()[-1]}"
    ) from e
  atomic.write(path, model.getvalue())
  return str(path)


def _affordable_coverage(lines: Sequence[str], vocab: int) -> float:
  """Returns the share of the text in its commonest (vocab - 260) / 2 characters."""
  counts = collections.Counter(
    c for line in lines for c in unicodedata.normalize("NFKC", line).casefold()
  )
  common = [n for _, n in counts.most_common(max(1, (vocab - 260) // 2))]
  return sum(common) / counts.total()


def fingerprint(path: str) -> str:
  """Returns a digest of the model: equal digests give equal ids."""
  return hashlib.sha256(epath.Path(path).read_bytes()).hexdigest()[:16]


class Tokenizer:
  """A loaded model; make it with `load`."""

  def __init__(self, model: bytes):
    self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.vocab = self._model.vocab_size()

  def encode(self, text: str, *, nbest: int = 1, draw: float = 0.0) -> list[int]:
    """Returns the ids of the text, ends not included.

    Args:
      text: any text.
      nbest: how many segmentations to choose from.
      draw: in [0, 1): which one. The caller's, because sentencepiece's own sampling has
        one generator for all threads.
    """
    if nbest > 1:
      choices = self._model.NBestEncodeAsIds(text, nbest)
      return choices[int(draw * len(choices))] if choices else []
    return self._model.EncodeAsIds(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the normalised text of ids, padding and ends left out."""
    return self._model.DecodeIds([int(i) for i in ids if i > END])

  def piece(self, index: int) -> str:
    """Returns the text of one id: "cat", or "-ing" for one inside of a word."""
    piece = self._model.IdToPiece(int(index))
    if index <= END or self._model.IsByte(int(index)):
      return piece
    return piece[1:] or "space" if piece.startswith("\u2581") else f"-{piece}"

  def pad(
    self, rows: Sequence[Sequence[int]], length: int, eos: bool = True
  ) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids int32[b, length] and mask bool[b, length], cut, ended and padded."""
    ids = np.full((len(rows), length), PAD, np.int32)
    for i, row in enumerate(rows):
      row = [*row[: length - 1], END] if eos else row[:length]
      ids[i, : len(row)] = row
    return ids, ids != PAD


def load(path: str, vocab: int, modality: str = "text") -> Tokenizer:
  """Returns the tokenizer at `path`.

  Args:
    path: of a sentencepiece model.
    vocab: what config.model.modalities.<modality>.vocab says.
    modality: for the error message.

  Raises:
    ValueError: its size is not `vocab`, or it does not use 0 for padding.
    FileNotFoundError: there is none; says how it comes about.
  """
  if "{workdir}" in path or not path or not epath.Path(path).exists():
    raise FileNotFoundError(
      f"no tokenizer at config.data.tokenizer = {path!r}: "
      "input_pipeline.pipeline.prepare(config, workdir) trains it on the captions"
    )
  try:
    tokenizer = _load(epath.Path(path).read_bytes())
  except RuntimeError as e:
    raise ValueError(
      f"config.data.tokenizer = {path!r} is not a sentencepiece model ({e}): name "
      "another, or remove it and one is trained on the captions"
    ) from e
  if tokenizer.vocab != vocab:
    raise ValueError(
      f"the tokenizer {path} has {tokenizer.vocab} ids, but "
      f"config.model.modalities.{modality}.vocab = {vocab}: set it to "
      f"{tokenizer.vocab}, or remove the file to train another"
    )
  if tokenizer._model.pad_id() != PAD:
    pad = tokenizer._model.pad_id()
    raise ValueError(
      f"config.data.tokenizer = {path!r} pads with {pad}; Concord with 0"
    )
  return tokenizer


@functools.lru_cache(maxsize=4)
def _load(model: bytes) -> Tokenizer:
  return Tokenizer(model)
