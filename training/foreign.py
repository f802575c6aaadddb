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
    at: where it was read; None: it was made of other files.
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
  state, given, folder = files.read(pathlib.Path(source))
  pool, length = sentences(folder)
  given |= {"pool": pool} if pool else {}
  config, params, found = convert.load(state, given, partial=partial)
  kind = convert.recognise(state, given)
  if (
    "text" in config.model.modalities
    and 0 < length < config.model.modalities.text.length
  ):
    config, params, _ = adapt.adapted(config, params, length=length)
  steps: pixels.Steps = ()
  if "image" in config.model.modalities:
    beside = {name: files.read_json(folder / name) for name in pixels.FILES}
    side = config.model.modalities.image.size[0]
    steps = pixels.steps(kind.pixels, kind.library, beside, given, side)
  words = None
  if "text" in config.model.modalities:
    words = words_of(pathlib.Path(tokenizer_at or folder), kind, given)
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


def sentences(folder: pathlib.Path) -> tuple[str, int]:
  """Returns (pool, most ids of a text) of a folder of sentence-transformers.

  ("", 0) where it is none, or does not say.

  Raises:
    ValueError: a pooling that our towers have not.
  """
  length = files.read_json(folder / "sentence_bert_config.json").get("max_seq_length")
  said = files.read_json(folder / "1_Pooling" / "config.json")
  modes = [key for key, value in said.items() if value is True and "_mode_" in key]
  if not modes:
    return "", length or 0
  known = dict(pooling_mode_mean_tokens="mean", pooling_mode_cls_token="first")
  if len(modes) > 1 or modes[0] not in known:
    raise ValueError(
      f"{folder}/1_Pooling/config.json pools by {', '.join(modes)}, expected one of "
      f"{', '.join(known)}"
    )
  return known[modes[0]], length or 0


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
  where: pathlib.Path, kind: Format, given: Mapping[str, Any]
) -> Words | None:
  """Returns the tokenizer of a folder or a file, or None.

  Args:
    where: a folder, or the file of the tokenizer itself.
    kind: the architecture, whose library decides how texts are cleaned.
    given: its config.json.

  Raises:
    ValueError: a tokenizer that pads on the left.
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
  options: dict[str, Any] = {}
  fill = _fill(data, said, kind)
  if fill is not None:
    options["fill"] = fill
  clean = _clean(kind, given, said, data)
  if clean != cleaning.none.__name__:
    options["clean"] = clean
  at = where if where.is_file() else where / name
  return Words(name, data, options, at if at.exists() else None)


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
    merges = (where / "merges.txt").read_text(encoding="utf-8")
    vocab = files.read_json(where / "vocab.json")
    return "tokenizer.json", subwords.clip_json(vocab, merges).encode()
  if (where / "vocab.txt").exists():
    vocab_txt = (where / "vocab.txt").read_text(encoding="utf-8")
    lowercase = said.get("do_lower_case", True)
    return "tokenizer.json", subwords.bert_json(vocab_txt, lowercase).encode()
  return None


def _class(said: Mapping[str, Any]) -> str:
  return str(said.get("tokenizer_class", "")).removesuffix("Fast")


def _fill(data: bytes, said: Mapping[str, Any], kind: Format) -> int | None:
  """Returns the id of padding, or None: as the tokenizer's file says."""
  if kind.library == "open_clip" and kind.architecture == "CLIP":
    return 0
  name = said.get("pad_token") or ""
  name = name["content"] if isinstance(name, Mapping) else name
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
