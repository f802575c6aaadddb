"""Converts checkpoints of CLIP and SigLIP models from and to other libraries.

python -m tools.convert --from clip-vit-base-patch32 --to runs/clip --format concord
python -m tools.convert --from runs/mine --to exported --format hf

Reads safetensors (a file, or a folder with its config.json) of transformers and of
open_clip, and Concord's own checkpoints; which architectures is written in
model/interop. For `concord` it writes a checkpoint for config.init_from, config.json
and a recipe, config.py; for `hf` and `open_clip` what these libraries load from a
folder. Pickles (.bin, .pt) are refused: they run code when they are read.

What is done to images and texts comes along, in config.data.transforms and
eval_transforms, and the tokenizer in config.data.tokenizer: from its folder, or from
--tokenizer. Its files are copied for the way back, too.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
import pathlib
import pprint
import shutil
from typing import Any

from ml_collections import ConfigDict

from configs import base
from input_pipeline import tokenizer
from model.encoders import config as configs
from model.interop import adapt, convert, files, hf_towers, pixels
from model.interop.describe import Format
from model.interop.rules import SHOWN, Read
from training import checkpoint, errors, foreign

FORMATS = ("concord", *convert.LIBRARIES)
CLIP_END = "<|endoftext|>", 49_407  # of CLIP's own tokenizer
# What is done to a text first: ours -> what open_clip has for it.
CLEAN = dict(
  lowercase="lower",
  plain="canonicalize",
  mended="whitespace",
  mended_lowercase="lower",
  mended_plain="canonicalize",
)


def main(argv: Sequence[str] | None = None) -> None:
  """Parses the flags, converts and prints what was done."""
  flags = parse(argv)
  with errors.shown(debug=flags.debug), errors.settings():
    print(run(flags))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Returns the flags."""
  parser = argparse.ArgumentParser(
    prog="python -m tools.convert",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--from", dest="source", required=True, help="a file, a folder, or a run's workdir"
  )
  parser.add_argument("--to", required=True, help="a new folder")
  parser.add_argument("--format", required=True, choices=FORMATS, help="to write")
  parser.add_argument(
    "--size", type=int, default=0, help="of images, in pixels: resizes the positions"
  )
  parser.add_argument(
    "--patch", type=int, default=0, help="of images, in pixels: resamples the kernel"
  )
  parser.add_argument("--vocab", type=int, default=0, help="more ids, behind the old")
  parser.add_argument("--length", type=int, default=0, help="of texts, in ids")
  parser.add_argument(
    "--tokenizer", default="", help="a file or folder, if not beside the weights"
  )
  parser.add_argument(
    "--partial",
    action="store_true",
    help="read towers with missing arrays, too, and without those that have no place",
  )
  parser.add_argument(
    "--debug", action="store_true", help="show the tracebacks of wrong flags, too"
  )
  return parser.parse_args(argv)


def run(flags: argparse.Namespace) -> str:
  """Does what the flags ask for; returns what to print.

  Raises:
    FileNotFoundError: no checkpoint, or no config.json of one of Concord's.
    FileExistsError: something lies at --to already.
    ValueError: a pickle, another architecture, missing arrays or ones without a place,
      shapes that contradict each other, or a model that the format cannot hold.
  """
  source, to = pathlib.Path(flags.source), pathlib.Path(flags.to)
  if not source.exists():
    raise FileNotFoundError(f"--from {source}: no such file or folder")
  if to.exists() and any(to.iterdir()):
    raise FileExistsError(f"--to {to} is not empty: name another folder")
  if checkpoint.is_checkpoint(source) and flags.format == "concord":
    raise ValueError(f"--from {source} is a checkpoint of Concord's already")
  read = own if checkpoint.is_checkpoint(source) else others
  config, params, words, lines = read(flags)
  config, params, resized = adapt.adapted(
    config,
    params,
    size=flags.size,
    patch=flags.patch,
    vocab=flags.vocab,
    length=flags.length,
  )
  if flags.size or flags.patch:
    pixels.tiled(config)
  lines.append(f"resized: {'; '.join(resized) or 'none'}")
  folder = beside(flags, config, words)
  if flags.format == "concord":
    checkpoint.write_params(flags.to, params)
    if words:
      (to / words.file).write_bytes(words.data)
      config.data.tokenizer = str((to / words.file).absolute())
    checkpoint.save_config(flags.to, config)
    (to / "config.py").write_text(recipe(config, source.name))
    use = f"--config {to / 'config.py'} --config.init_from={to}"
  else:
    state, card = convert.save(config, params, flags.format)
    if flags.format == "open_clip":
      lines += spoken(config, card["model_cfg"]["text_cfg"], folder, words)
    more = {files.CONFIGS[flags.format]: card}
    more |= pixels.written(config, flags.format, card)
    if card.get("model_type") == "bert":
      more |= hf_towers.pooling(*configs.modalities(config.model))
    files.write(to, flags.format, state, more)
    use = str(to)
  lines += copied(folder, to)
  return "\n".join([*lines, f"use it: {use}"])


def beside(
  flags: argparse.Namespace, config: ConfigDict, words: foreign.Words | None
) -> pathlib.Path:
  """Returns the folder with the files of the model's tokenizer."""
  source, named = pathlib.Path(flags.source), pathlib.Path(config.data.tokenizer)
  if words and flags.tokenizer:
    source = pathlib.Path(flags.tokenizer)
  elif named.name and named.exists() and not words:
    source = named  # of a run, whose tokenizer came from elsewhere
  return source if source.is_dir() else source.parent


def spoken(
  config: ConfigDict,
  card: dict[str, Any],
  folder: pathlib.Path,
  words: foreign.Words | None,
) -> list[str]:
  """Says in open_clip's config which tokenizer it takes; returns a line on it.

  That is CLIP's own, unless the config names another: then transformers reads the files
  beside the weights, and asks tokenizer_config.json for the padding.

  Args:
    config: of the model, and of what is done to texts.
    card: text_cfg of open_clip's config; changed.
    folder: of the tokenizer's files.
    words: the tokenizer, if it is not the run's.
  """
  path = folder / pathlib.Path(config.data.tokenizer).name
  data = words.data if words else path.read_bytes() if path.is_file() else b""
  if data and tokenizer.id_of(data, CLIP_END[0]) == CLIP_END[1]:
    return []
  said = files.read_json(folder / "tokenizer_config.json")
  options = [o for name, o in config.data.eval_transforms if name == "tokenize"]
  if not data or not options or not {"tokenizer_class", "pad_token"} & {*said}:
    return [
      "texts: open_clip will take CLIP's own tokenizer, as no files of transformers' "
      "for another lie here: give its encode_text the ids that Concord makes of texts"
    ]
  ours = options[0].get("clean", "none")
  clean = CLEAN.get(ours, "whitespace")
  card |= dict(hf_tokenizer_name="local-dir:.", tokenizer_kwargs=dict(clean=clean))
  exact = ours in ("mended", "mended_lowercase", "mended_plain")
  more = "" if exact else f", which mends texts by ftfy first; here clean = {ours!r}"
  return [f"texts: by the tokenizer beside the weights, clean = {clean!r}{more}"]


Loaded = tuple[ConfigDict, dict[str, Any], foreign.Words | None, list[str]]


def own(flags: argparse.Namespace) -> Loaded:
  """Returns (config, parameters, None, lines on them) of a checkpoint of Concord's.

  Raises:
    FileNotFoundError: no checkpoint, or no config.json.
  """
  folder = pathlib.Path(checkpoint.step_folder(flags.source, "--from"))
  paths = [folder / "config.json", folder.parents[1] / "config.json"]
  for path in paths:
    if path.exists():
      params = checkpoint.read_params(flags.source, "--from", averaged=True)
      config = ConfigDict(json.loads(path.read_text()))
      lines = [f"read: a checkpoint of Concord's, {_count(params)}"]
      if flags.format in ("hf", "open_clip"):
        lines += ended(config, path.parent)
      return config, params, None, lines
  raise FileNotFoundError(
    f"--from {folder}: no config.json at {paths[0]} or {paths[1]}, which would say "
    "what model the parameters are of"
  )


def ended(config: ConfigDict, folder: pathlib.Path) -> list[str]:
  """Sets the id that ends a text, where the run left it open; returns a line on it.

  Libraries that pool there ask for it. It is what pool = "last" reads if padding is
  known and each text ends with it, and only with a causal tower the padding that their
  models do read makes no difference.

  Args:
    config: of a run; changed.
    folder: where the tokenizer lies if the run has moved.
  """
  found = [m for m in configs.modalities(config.model) if m.name == "text"]
  if not found or found[0].stem != "tokens":
    return []
  text = found[0]
  if text.eos >= 0 or text.pad < 0 or text.pool != "last" or not text.trunk.causal:
    return []
  named = pathlib.Path(config.data.tokenizer)
  path = named if named.exists() else folder / named.name
  options = [o for name, o in config.data.eval_transforms if name == "tokenize"]
  options = [o for o in options if o.get("modality", "text") == "text"]
  if not options or not options[0].get("eos", True) or not path.is_file():
    return []
  end = options[0].get("end")
  end = tokenizer.load(str(path), text.vocab).end if end is None else tuple(end)
  if len(end) != 1 or end[0] == text.pad:  # such texts are pooled before their end
    return []
  config.model.modalities.text.eos = int(end[0])
  return [f"texts end with id {end[0]}, by {path.name}"]


def others(flags: argparse.Namespace) -> Loaded:
  """Returns (config, parameters, tokenizer, report) of another library's checkpoint.

  Raises:
    FileNotFoundError, ValueError: as `training.foreign.read`.
  """
  read = foreign.read(flags.source, partial=flags.partial, tokenizer_at=flags.tokenizer)
  lines = report(
    read.kind, len(read.found.loaded) + len(read.found.unused), read.given, read.found
  )
  if read.words:
    said = "".join(f", {key} = {value!r}" for key, value in read.words.options.items())
    lines.append(f"tokenizer: {read.words.file}{said}")
  elif "text" in read.config.model.modalities:
    lines.append(
      "tokenizer: none found; name its file or folder by --tokenizer, or the texts of "
      "config.data are yours to tokenize"
    )
  return read.config, read.params, read.words, lines


def recipe(config: ConfigDict, source: str) -> str:
  """Returns the source of a recipe that makes the config from configs/base.py.

  The tokenizer is looked for beside the recipe, so that the folder may move.
  """
  config = ConfigDict(config)
  name = pathlib.Path(config.data.tokenizer).name
  config.data.tokenizer = ""
  changes = pprint.pformat(_changes(config, base.get_config()), width=84)
  absent = [
    m for m in base.get_config().model.modalities if m not in config.model.modalities
  ]
  beside = f"str(pathlib.Path(__file__).resolve().with_name({name!r}))"
  return (
    f'"""A model converted from {source}; python -m tools.convert wrote this."""\n\n'
    + "import pathlib\n\n" * bool(name)
    + 'from configs import base\n\n\ndef get_config(arg: str = ""):\n  del arg\n'
    "  c = base.get_config()\n"
    + "".join(f"  del c.model.modalities[{m!r}]\n" for m in absent)
    + f"  c.update(\n{changes}\n  )\n"
    + f"  c.data.tokenizer = {beside}\n" * bool(name)
    + "  return c\n"
  )


def _changes(config: ConfigDict, default: ConfigDict) -> dict[str, Any]:
  """Returns the nested keys of config that default lacks or has otherwise."""
  out: dict[str, Any] = {}
  for key, value in config.items():
    was = default.get(key)
    if isinstance(value, ConfigDict):
      inside = _changes(value, was if isinstance(was, ConfigDict) else ConfigDict())
      if inside:
        out[key] = inside
    elif value != was:
      out[key] = value
  return out


def report(
  kind: Format, arrays: int, given: Mapping[str, Any], found: Read
) -> list[str]:
  """Returns lines on what was loaded of so many arrays, is missing and has no use."""
  lines = [
    f"read: {kind.library}'s {kind.architecture}, {_count(found.params)}",
    f"loaded: {len(found.loaded)} arrays of {arrays}",
    f"missing, as the model will initialise them: {_some(found.missing)}",
    f"unused: {_some(found.unused)}",
  ]
  if not {*given} - {"pool"} and kind.library != "big_vision":  # whose arrays say all
    lines.append(
      f"no config.json: heads of width 64 and the activation and epsilon that "
      f"{kind.library} takes by default are assumed"
    )
  return lines


def _some(names: Sequence[str]) -> str:
  more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
  return ", ".join(names[:SHOWN]) + more if names else "none"


def copied(folder: pathlib.Path, to: pathlib.Path) -> list[str]:
  """Copies files of tokenizers as they are; returns a line on it, if any."""
  names = [name for name in foreign.BESIDE if (folder / name).exists()]
  for name in names:
    if not (to / name).exists():  # a tokenizer that was changed is there already
      shutil.copy(folder / name, to / name)
  return [f"copied: {', '.join(names)}"] * bool(names)


def _count(params: Mapping[str, Any]) -> str:
  leaves = checkpoint.flatten(params).values()
  return f"{sum(leaf.size for leaf in leaves):,} parameters"


if __name__ == "__main__":
  main()
