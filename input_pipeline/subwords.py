"""Tokenizers of other libraries, run by the package `tokenizers` (no PyTorch).

Read: tokenizer.json of Hugging Face, whatever it holds; the merges of CLIP's byte pair
encoding as open_clip ships them; and, to be written as tokenizer.json, the older files
vocab.json with merges.txt (CLIP) and vocab.txt (BERT).
"""

from collections.abc import Mapping, Sequence
import gzip
import json
from typing import Any

CLIP_VOCAB = 49_408
PADS = ("[PAD]", "<pad>")  # where nothing else says what pads
START, END = "<|startoftext|>", "<|endoftext|>"  # CLIP's, in transformers
_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Subwords:
  """One tokenizer of the package; make it with `from_json` or `from_merges`.

  Attributes:
    vocab: number of ids, added ones included.
    begin: ids that it puts before a text.
    end: ids that it puts behind a text.
    fill: the id that it pads with.
  """

  def __init__(self, model: Any, fill: int | None = None):
    self._model = model
    model.no_truncation()
    padding = model.padding
    model.no_padding()
    self.vocab = 1 + max(model.get_vocab(with_added_tokens=True).values())
    self.begin, self.end = self._ends()
    if fill is None and padding:
      fill = padding["pad_id"]
    if fill is None:
      ids = (model.token_to_id(name) for name in PADS)
      fill = next((i for i in ids if i is not None), 0)
    self.fill = fill

  def _ends(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Finds what stands around a text: a template has no public reader."""
    bare = self._model.encode("a", add_special_tokens=False).ids
    full = self._model.encode("a").ids
    for i in range(len(full) - len(bare) + 1):
      if bare and full[i : i + len(bare)] == bare:
        return tuple(full[:i]), tuple(full[i + len(bare) :])
    raise ValueError(f"config.data.tokenizer: 'a' has the ids {bare}, with ends {full}")

  def encode(self, text: str, *, nbest: int = 1, draw: float = 0.0) -> list[int]:
    """Returns the ids of the text, ends not included.

    Raises:
      ValueError: nbest > 1, which only sentencepiece's unigram models have.
    """
    del draw
    if nbest > 1:
      raise ValueError(
        f"config.data.transforms: tokenize has nbest = {nbest}, and this tokenizer has "
        "one segmentation of a text: set nbest = 1"
      )
    return self._model.encode(text, add_special_tokens=False).ids

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids, padding and ends left out."""
    text = self._model.decode([int(i) for i in ids], skip_special_tokens=True)
    return text.replace("</w>", " ").strip()

  def piece(self, index: int) -> str:
    """Returns the text of one id."""
    return self._model.id_to_token(int(index)) or f"#{index}"

  def id(self, piece: str) -> int | None:
    """Returns the id of a piece, or None."""
    return self._model.token_to_id(piece)


def from_json(data: bytes) -> Subwords:
  """Returns the tokenizer of a tokenizer.json.

  Raises:
    ValueError: it is none.
    ImportError: the package is not installed.
  """
  lib = _library()
  try:
    return Subwords(lib.Tokenizer.from_str(data.decode()))
  except (ValueError, UnicodeDecodeError):
    raise
  except Exception as e:  # the package raises this very type
    raise ValueError(f"not a tokenizer.json: {e}") from e


def from_merges(data: bytes) -> Subwords:
  """Returns CLIP's byte pair encoding (arXiv 1508.07909) from its gzipped merges.

  Texts come cleaned (`cleaning.mended_lowercase`); ids are padded with 0.

  Raises:
    ValueError: not the file of open_clip's or OpenAI's.
    ImportError: the package is not installed.
  """
  lib = _library()
  alphabet = _byte_letters()
  count = CLIP_VOCAB - 2 * len(alphabet) - 2
  try:
    lines = gzip.decompress(data).decode().split("\n")[1 : 1 + count]
    merges = [(a, b) for a, b in (line.split() for line in lines)]
  except (OSError, EOFError, ValueError) as e:
    raise ValueError(f"not the merges of CLIP's tokenizer: {e}") from e
  if len(merges) != count:
    raise ValueError(
      f"not the merges of CLIP's tokenizer: {len(merges)}, expected {count}"
    )
  names = [*alphabet, *(c + "</w>" for c in alphabet), *(a + b for a, b in merges)]
  start, end = "<start_of_text>", "<end_of_text>"
  vocab = {name: i for i, name in enumerate([*names, start, end])}
  model = lib.Tokenizer(
    lib.models.BPE(vocab=vocab, merges=merges, end_of_word_suffix="</w>")
  )
  _split(model, rf"(?i:{start}|{end}|{_WORDS})")
  _ends(model, start, end)
  return Subwords(model, fill=0)


def clip_json(vocab: Mapping[str, int], merges: str) -> str:
  """Returns the tokenizer.json of vocab.json and merges.txt, CLIP's in transformers.

  Raises:
    ValueError: they are not.
  """
  lib = _library()
  lines = [line for line in merges.split("\n") if line and not line.startswith("#ver")]
  pairs = [tuple(line.split()) for line in lines]
  odd = next((line for line, pair in zip(lines, pairs) if len(pair) != 2), None)
  if odd is not None:
    raise ValueError(
      f"merges.txt holds the line {odd[:40]!r}, expected two pieces: is it whole?"
    )
  try:
    bpe = lib.models.BPE(
      vocab=dict(vocab), merges=pairs, end_of_word_suffix="</w>", unk_token=END
    )
  except Exception as e:  # the package raises this very type
    why = str(e).split("\n")[0]
    raise ValueError(f"vocab.json and merges.txt are of no tokenizer: {why}") from e
  model = lib.Tokenizer(bpe)
  normal = lib.normalizers
  model.normalizer = normal.Sequence(
    [normal.NFC(), normal.Replace(lib.Regex(r"\s+"), " "), normal.Lowercase()]
  )
  start, end = (name.replace("|", r"\|") for name in (START, END))
  _split(model, rf"{start}|{end}|{_WORDS}")
  _ends(model, START, END)
  return model.to_str()


def bert_json(vocab: str, lowercase: bool = True) -> str:
  """Returns the tokenizer.json of BERT's vocab.txt (arXiv 1810.04805)."""
  lib = _library()
  ids = {line.rstrip("\r"): i for i, line in enumerate(vocab.rstrip("\n").split("\n"))}
  model = lib.Tokenizer(lib.models.WordPiece(vocab=ids, unk_token="[UNK]"))
  model.normalizer = lib.normalizers.BertNormalizer(lowercase=lowercase)
  model.pre_tokenizer = lib.pre_tokenizers.BertPreTokenizer()
  model.decoder = lib.decoders.WordPiece(prefix="##")
  _ends(model, "[CLS]", "[SEP]")
  model.add_special_tokens(["[PAD]", "[UNK]", "[MASK]"])
  return model.to_str()


def normalised(data: bytes, bert: Mapping[str, Any], lowercase: bool) -> bytes:
  """Returns a tokenizer.json that treats texts otherwise before it splits them.

  Args:
    data: a tokenizer.json.
    bert: option -> value of its normalizer, if that is BERT's.
    lowercase: puts all in lower case first.
  """
  model = json.loads(data)
  was = model.get("normalizer")
  now = {**was, **bert} if was and was["type"] == "BertNormalizer" else was
  if lowercase and not _lowers(now):
    rest = [now] if now else []
    now = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *rest]}
  if now == was:
    return data
  return json.dumps(model | {"normalizer": now}, ensure_ascii=False).encode()


def _lowers(normalizer: Mapping[str, Any] | None) -> bool:
  if not normalizer:
    return False
  inside = any(_lowers(n) for n in normalizer.get("normalizers", ()))
  return (
    inside or normalizer["type"] == "Lowercase" or bool(normalizer.get("lowercase"))
  )


def _split(model: Any, words: str) -> None:
  lib = _library()
  before = lib.pre_tokenizers
  model.pre_tokenizer = before.Sequence(
    [
      before.Split(lib.Regex(words), behavior="removed", invert=True),
      before.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  model.decoder = lib.decoders.ByteLevel()


def _ends(model: Any, start: str, end: str) -> None:
  """Puts `start` before and `end` behind each text; both are names of ids."""
  model.add_special_tokens([start, end])
  special = [(name, model.token_to_id(name)) for name in (start, end)]
  template = _library().processors.TemplateProcessing
  model.post_processor = template(single=f"{start} $A {end}", special_tokens=special)


def _byte_letters() -> list[str]:
  """Returns a printable letter for each byte, in the order of CLIP's ids."""
  plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in plain]
  return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(others))]


def is_json(data: bytes) -> bool:
  """Returns whether the bytes may be a tokenizer.json."""
  return data.lstrip()[:1] == b"{"


def is_merges(data: bytes) -> bool:
  """Returns whether the bytes may be gzipped merges."""
  return data[:2] == b"\x1f\x8b"


def _library() -> Any:
  try:
    import tokenizers
  except ImportError as e:
    raise ImportError(
      "config.data.tokenizer is of another library, which the package `tokenizers` "
      "reads: pip install -r requirements.txt"
    ) from e
  return tokenizers
