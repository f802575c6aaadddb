"""Another library's checkpoint on disk as config, parameters and tokenizer of ours.

What `tools.convert` writes and `training.pretrained` uses. The config says what is done
to images and texts, so that it can be trained and evaluated as it is, once
config.data.source names data.
"""

from collections.abc import Mapping
import dataclasses
import pathlib
import tempfile
from typing import Any

from ml_collections import ConfigDict

from input_pipeline import cleaning, subwords, tokenizer
from model.interop import adapt, convert, files, pixels
from model.interop.describe import Format
from model.interop.rules import Read
from training import sentences

# What tokenizers are made of, by the names that libraries give it.
PIECES = ("spiece.model", "sentencepiece.bpe.model", "tokenizer.model")
BESIDE = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "vocab.txt",
  *PIECES,
)
GEMMA = "<bos>"  # a piece of SigLIP 2's tokenizer, not of SigLIP's
# Classes of tokenizers whose tokenizer.json is all that counts; the others set BERT's
# normalizer by keys of tokenizer_config.json: key -> its name there, and what is usual.
_GENERIC = ("PreTrainedTokenizer", "TokenizersBackend")
_BERT = dict(
  do_lower_case=("lowercase", True),
  strip_accents=("strip_accents", None),
  tokenize_chinese_chars=("handle_chinese_chars", True),
)
# open_clip's name of cleaning a text -> ours; the first is what it does if unsaid.
_CLEAN = dict(
  whitespace="mended", lower="mended_lowercase", canonicalize="mended_plain"
)


@dataclasses.dataclass(frozen=True)
class Words:
  """A tokenizer that comes along.

  Attributes:
    file: its name in the folder of the converted model.
    data: what the file holds.
    options: of `tokenize`.
    at: where it was read; None: it was made of other files, or changed.
  """

  file: str
  data: bytes
  options: Mapping[str, Any]
  at: pathlib.Path | None = None


@dataclasses.dataclass(frozen=True)
class Foreign:
  """What `read` returns.

  Attributes:
    kind: its architecture.
    config: ours, with what is done to images and texts.
    params: {"towers": ..., "objective": ...}, f32, of numpy.
    found: what was read of the arrays, and what was not.
    given: its config.json, {} without one.
    words: its tokenizer, None without one.
  """

  kind: Format
  config: ConfigDict
  params: dict[str, Any]
  found: Read
  given: Mapping[str, Any]
  words: Words | None


def read(
  source: str | pathlib.Path, *, partial: bool = False, tokenizer_at: str = ""
) -> Foreign:
  """Reads a checkpoint, its preprocessing and its tokenizer.

  Args:
    source: a file or a folder.
    partial: whether towers with missing arrays are read, too.
    tokenizer_at: a file or a folder of the tokenizer; "": beside the weights.

  Raises:
    FileNotFoundError: no weights, or no tokenizer at `tokenizer_at`.
    ValueError: a pickle, another architecture, missing arrays, shapes that contradict
      each other, or files beside it that cannot be followed.
  """
  root, at = sentences.places(pathlib.Path(source))
  state, given, folder = files.read(at)
  kind = convert.recognise(state, given)
  said = sentences.Sentences()
  if kind.modalities == ("text",):
    said = sentences.read(root, folder)
  given |= {"pool": said.pool} if said.pool else {}
  config, params, found = convert.load(state, given, partial=partial)
  if said.length and said.length < config.model.modalities.text.length:
    config, params, _ = adapt.adapted(config, params, length=said.length)
  steps: pixels.Steps = ()
  if "image" in config.model.modalities:
    beside = {name: files.read_json(folder / name) for name in pixels.FILES}
    image = config.model.modalities.image
    sizes = image.size[0], image.patch[0]
    steps = pixels.steps(kind.pixels, kind.library, beside, given, *sizes)
  words = None
  if "text" in config.model.modalities:
    where = pathlib.Path(tokenizer_at or folder)
    words = words_of(where, kind, given, lowercase=said.lowercase)
    if words:
      vocab = config.model.modalities.text.vocab
      tokenizer.check(words.data, words.file, vocab)
    if tokenizer_at and words is None:
      raise FileNotFoundError(
        f"no tokenizer at {tokenizer_at}: expected tokenizer.json, "
        f"{', '.join(PIECES)}, vocab.json with merges.txt, vocab.txt or "
        "bpe_simple_vocab_16e6.txt.gz"
      )
  set_data(config, steps, words)
  return Foreign(kind, config, params, found, given, words)


def keep(words: Words) -> pathlib.Path:
  """Returns the path of a tokenizer's file, for a model that is used as it is.

  One that was made of other files is written to a temporary folder.
  """
  if words.at:
    return words.at
  folder = pathlib.Path(tempfile.mkdtemp(prefix="concord_tokenizer_"))
  (folder / words.file).write_bytes(words.data)
  return folder / words.file


def set_data(config: ConfigDict, steps: pixels.Steps, words: Words | None) -> None:
  """Fills config.data.transforms and eval_transforms; not the tokenizer's path."""
  ends = (("tokenize", dict(words.options)),) if words else ()
  sample = (("sample_caption", dict(train=False)),) if words else ()
  config.data.eval_transforms = (*steps, *sample, *ends)
  named = dict(steps)
  if "resize" in named:
    crop = (
      "random_resized_crop",
      dict(filter=named["resize"].get("filter", "bicubic")),
    )
    steps = (("decode_image", {}), crop, ("normalize", named["normalize"]))
  sample = (("sample_caption", {}),) if words else ()
  config.data.transforms = (*steps, *sample, *ends)


def words_of(
  where: pathlib.Path,
  kind: Format,
  given: Mapping[str, Any],
  *,
  lowercase: bool = False,
) -> Words | None:
  """Returns the tokenizer of a folder or a file, or None.

  Args:
    where: a folder, or the file of the tokenizer itself.
    kind: the architecture, whose library decides how texts are cleaned.
    given: its config.json.
    lowercase: whether texts are put in lower case before all else.

  Raises:
    ValueError: a tokenizer that pads on the left, or files that are none.
  """
  folder = where if where.is_dir() else where.parent
  said = files.read_json(folder / "tokenizer_config.json")
  if said.get("padding_side") == "left":
    raise ValueError(
      f"{folder}/tokenizer_config.json: padding_side = 'left', expected 'right': texts "
      "begin at the first position"
    )
  found = _file(where, said)
  if found is None:
    return None
  name, data = found
  _load(where, name, data)
  read, data = data, _normalised(data, folder, said, lowercase)
  options: dict[str, Any] = {}
  fill = _fill(data, folder, said, kind)
  if fill is not None:
    options["fill"] = fill
  clean = _clean(kind, given, said, data)
  if clean != cleaning.none.__name__:
    options["clean"] = clean
  at = where if where.is_file() else where / name
  return Words(name, data, options, at if at.exists() and data == read else None)


def _file(where: pathlib.Path, said: Mapping[str, Any]) -> tuple[str, bytes] | None:
  """Returns (name, bytes) of the one file that Concord's pipeline reads."""
  if where.is_file():
    return where.name, where.read_bytes()
  names = ["tokenizer.json", *PIECES]
  if _class(said) == "SiglipTokenizer":  # its other file has been made by others
    names = [*PIECES, "tokenizer.json"]
  names += [p.name for p in sorted(where.glob("bpe_simple_vocab*.txt.gz"))]
  for name in names:
    if (where / name).exists():
      return name, (where / name).read_bytes()
  if (where / "merges.txt").exists() and (where / "vocab.json").exists():
    merges = _text(where / "merges.txt")
    vocab = files.read_json(where / "vocab.json")
    return "tokenizer.json", subwords.clip_json(vocab, merges).encode()
  if (where / "vocab.txt").exists():
    return "tokenizer.json", subwords.bert_json(_text(where / "vocab.txt")).encode()
  return None


def _text(path: pathlib.Path) -> str:
  try:
    return path.read_text(encoding="utf-8")
  except UnicodeDecodeError as e:
    raise ValueError(f"{path} is not a text: {e}") from e


def _load(where: pathlib.Path, name: str, data: bytes) -> None:
  """Reads a tokenizer once, to say of which file what is wrong.

  Raises:
    ValueError: the file holds none.
  """
  try:
    tokenizer.id_of(data, "")
  except (RuntimeError, ValueError) as e:
    why = f" ({e})" if isinstance(e, ValueError) else ""  # else of a parser's insides
    raise ValueError(
      f"{where if where.is_file() else where / name} is not a tokenizer{why}: expected "
      f"a folder with its files, or a tokenizer.json, {', '.join(PIECES)} or "
      "bpe_simple_vocab_16e6.txt.gz"
    ) from e


def _normalised(
  data: bytes, folder: pathlib.Path, said: Mapping[str, Any], lowercase: bool
) -> bytes:
  """Returns the tokenizer with what transformers changes of it when it is loaded."""
  options = {}
  for key, (theirs, usual) in _BERT.items():
    value = said.get(key, usual)
    if value not in (True, False, None):
      raise ValueError(
        f"{folder}/tokenizer_config.json: {key} = {value!r}, expected true, false or "
        "null: mend the file"
      )
    if _class(said) not in _GENERIC and (_class(said) or key in said):
      options[theirs] = usual if value is None else value
  if subwords.is_json(data):
    return subwords.normalised(data, options, lowercase)
  if lowercase:
    raise ValueError(
      f"{folder}/sentence_bert_config.json: do_lower_case = true, expected a "
      "tokenizer.json or vocab.txt beside it, which do that"
    )
  return data


def _class(said: Mapping[str, Any]) -> str:
  return str(said.get("tokenizer_class", "")).removesuffix("Fast")


def _fill(
  data: bytes, folder: pathlib.Path, said: Mapping[str, Any], kind: Format
) -> int | None:
  """Returns the id of padding, or None: as the tokenizer's file says."""
  if kind.library == "open_clip" and kind.architecture == "CLIP":
    return 0
  name = said.get("pad_token") or ""
  name = name.get("content") if isinstance(name, Mapping) else name
  if not isinstance(name, str):
    raise ValueError(
      f"{folder}/tokenizer_config.json: pad_token = {said['pad_token']!r}, expected a "
      "string: mend the file"
    )
  siglip = kind.architecture == "SiglipModel" or kind.library == "big_vision"
  if not name and siglip:
    name = "</s>"  # which Gemma's has not
  return tokenizer.id_of(data, name) if name else None


def _clean(
  kind: Format, given: Mapping[str, Any], said: Mapping[str, Any], data: bytes
) -> str:
  """Returns what is done to a text first: a name of `cleaning`."""
  if kind.library == "open_clip":
    model = given.get("model_cfg", given)
    text = model.get("text_cfg") or {}
    own = "whitespace" if text.get("hf_tokenizer_name") else "lower"
    if kind.architecture == "SigLIP":
      own = "canonicalize"
    return _CLEAN[(text.get("tokenizer_kwargs") or {}).get("clean", own)]
  pieces = not subwords.is_json(data) and not subwords.is_merges(data)
  siglip = kind.architecture == "SiglipModel" or kind.library == "big_vision"
  gemma = _class(said) in ("Siglip2Tokenizer", "GemmaTokenizer")
  if gemma or (siglip and pieces and tokenizer.id_of(data, GEMMA) is not None):
    return cleaning.lowercase.__name__  # SigLIP 2 was trained on it
  if siglip and pieces:
    return cleaning.plain.__name__
  if subwords.is_merges(data):
    return cleaning.mended_lowercase.__name__
  return cleaning.none.__name__
