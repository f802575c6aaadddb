"""The text vocabulary: a sentencepiece model, trained on the run's own captions.

Ids: 0 padding, 1 unknown, 2 begin, 3 end, then 256 bytes (a character that the model
has not seen is spelt in UTF-8 bytes, so no id is ever lost), then pieces.
Tokenizers of other libraries' models are read too: see `load`.
"""

import collections
from collections.abc import Iterable, Sequence
import functools
import hashlib
import io
import re
from typing import Protocol
import unicodedata

from etils import epath
import numpy as np
import sentencepiece

from input_pipeline import atomic, subwords

PAD, UNKNOWN, BEGIN, END = range(4)
# A model's table may have so many more rows than its tokenizer has ids: multiples of
# some power of two are quicker to multiply by, and new ids are put behind the old.
SPARE = 1024


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
  try:
    model = _trained(lines, vocab, kind, coverage)
  except (RuntimeError, ValueError, OSError) as e:
    advice = _largest(lines, str(e), kind, coverage)
    raise ValueError(
      f"config.model.modalities.text.vocab = {vocab} does not suit {len(lines)} "
      f"distinct captions: {advice}"
    ) from e
  atomic.write(path, model)
  return str(path)


def _trained(lines: Sequence[str], vocab: int, kind: str, coverage: float) -> bytes:
  model = io.BytesIO()
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
  return model.getvalue()


def _largest(lines: Sequence[str], said: str, kind: str, coverage: float) -> str:
  """Returns the largest vocabulary that suits, in words, or what the library said.

  The bound that it gives moves with the characters that a vocabulary can afford.
  """
  while bound := re.search(r"value <= (\d+)", said):
    try:
      _trained(lines, int(bound[1]), kind, coverage)
    except (RuntimeError, ValueError, OSError) as e:
      if str(e) == said:
        break
      said = str(e)
    else:
      return f"it can be {bound[1]} at most, more captions allow more"
  return said.splitlines()[-1].rpartition("] ")[2]


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


class Tokenizer(Protocol):
  """What `load` returns, whatever library the file is of.

  Attributes:
    vocab: number of ids.
    begin: ids that stand before a text.
    end: ids that stand behind it.
    fill: the id of padding.
  """

  vocab: int
  begin: tuple[int, ...]
  end: tuple[int, ...]
  fill: int

  def encode(self, text: str, *, nbest: int = 1, draw: float = 0.0) -> list[int]:
    """Returns the ids of the text, ends not included.

    Args:
      text: any text.
      nbest: how many segmentations to choose from.
      draw: in [0, 1): which one. The caller's, because sentencepiece's own sampling has
        one generator for all threads.
    """

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the normalised text of ids, padding and ends left out."""

  def piece(self, index: int) -> str:
    """Returns the text of one id: "cat", or "-ing" for one inside of a word."""

  def id(self, piece: str) -> int | None:
    """Returns the id of a piece, by the name it has in the file, or None."""


class Pieces:
  """A sentencepiece model, ours or another's."""

  def __init__(self, model: bytes):
    self._model = sentencepiece.SentencePieceProcessor(model_proto=model)
    self.vocab = self._model.vocab_size()
    self.begin: tuple[int, ...] = ()
    self.end = tuple(i for i in (self._model.eos_id(),) if i >= 0)
    self.fill = max(self._model.pad_id(), 0)

  def encode(self, text: str, *, nbest: int = 1, draw: float = 0.0) -> list[int]:
    """As in `Tokenizer`; unigram models have several segmentations of a text."""
    if nbest > 1:
      choices = self._model.NBestEncodeAsIds(text, nbest)
      return choices[int(draw * len(choices))] if choices else []
    return self._model.EncodeAsIds(text)

  def decode(self, ids: Sequence[int]) -> str:
    """As in `Tokenizer`."""
    kept = [int(i) for i in ids if not self._special(int(i))]
    return self._model.DecodeIds(kept)

  def piece(self, index: int) -> str:
    """As in `Tokenizer`."""
    index = int(index)
    piece = self._model.IdToPiece(index)
    if self._special(index) or self._model.IsByte(index):
      return piece
    return piece[1:] or "space" if piece.startswith("\u2581") else f"-{piece}"

  def id(self, piece: str) -> int | None:
    """As in `Tokenizer`."""
    index = self._model.PieceToId(piece)
    return index if self._model.IdToPiece(index) == piece else None

  def _special(self, index: int) -> bool:
    return self._model.IsControl(index) or self._model.IsUnknown(index)


def padded(
  rows: Sequence[Sequence[int]],
  length: int,
  begin: Sequence[int] = (),
  end: Sequence[int] = (),
  fill: int = PAD,
) -> np.ndarray:
  """Returns int32[b, length]: rows cut where both ends would not fit, and padded."""
  ids = np.full((len(rows), length), fill, np.int32)
  for i, row in enumerate(rows):
    row = [*begin, *row[: max(length - len(begin) - len(end), 0)], *end][:length]
    ids[i, : len(row)] = row
  return ids


def load(path: str, vocab: int, modality: str = "text") -> Tokenizer:
  """Returns the tokenizer at `path`, by what the file holds.

  Args:
    path: of a sentencepiece model, of Hugging Face's tokenizer.json, or of the merges
      of CLIP's (bpe_simple_vocab_16e6.txt.gz).
    vocab: what config.model.modalities.<modality>.vocab says.
    modality: for the error message.

  Raises:
    ValueError: it is none of these, or has another number of ids than the model; one
      of another library's may have up to `SPARE` fewer.
    FileNotFoundError: there is none; says how it comes about.
    ImportError: it is another library's, and the package `tokenizers` is missing.
  """
  if "{workdir}" in path or not path or not epath.Path(path).exists():
    raise FileNotFoundError(
      f"no tokenizer at config.data.tokenizer = {path!r}: "
      "input_pipeline.pipeline.prepare(config, workdir) trains it on the captions"
    )
  return check(epath.Path(path).read_bytes(), path, vocab, modality)


def check(data: bytes, path: str, vocab: int, modality: str = "text") -> Tokenizer:
  """Returns the tokenizer that a file holds; the rest is as of `load`."""
  try:
    tokenizer = _load(data)
  except (RuntimeError, ValueError) as e:
    raise ValueError(
      f"config.data.tokenizer = {path!r} is not a sentencepiece model, nor a "
      f"tokenizer.json, nor CLIP's merges ({e}): name another, or remove it and one is "
      "trained on the captions"
    ) from e
  spare = SPARE if subwords.is_json(data) or tokenizer.end != (END,) else 0
  if not vocab - spare <= tokenizer.vocab <= vocab:
    raise ValueError(
      f"the tokenizer {path} has {tokenizer.vocab} ids, but "
      f"config.model.modalities.{modality}.vocab = {vocab}: set it to "
      f"{tokenizer.vocab}, or remove the file to train another; for parameters from "
      "elsewhere, take the tokenizer that they were trained with"
    )
  return tokenizer


def id_of(data: bytes, piece: str) -> int | None:
  """Returns the id of a piece of a tokenizer's file, or None."""
  return _load(data).id(piece)


@functools.lru_cache(maxsize=4)
def _load(data: bytes) -> Tokenizer:
  if subwords.is_json(data):
    return subwords.from_json(data)
  return subwords.from_merges(data) if subwords.is_merges(data) else Pieces(data)
