"""Converts checkpoints of CLIP and SigLIP models from and to other libraries.

python -m tools.convert --from clip-vit-base-patch32 --to runs/clip --format concord
python -m tools.convert --from runs/mine --to exported --format hf

Reads safetensors (a file, or a folder with its config.json) of transformers and of
open_clip, and Concord's own checkpoints; which architectures is written in
model/interop. For `concord` it writes a checkpoint for config.init_from, config.json
and a recipe, config.py; for `hf` and `open_clip` what these libraries load from a
folder. Pickles (.bin, .pt) are refused: they run code when they are read.

What is done to images is recorded in config.data.eval_transforms, and written from
there. Files of tokenizers are copied as they are: Concord's pipeline does not run other
libraries' tokenizers.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
import pathlib
import pprint
import shutil
from typing import Any

from ml_collections import ConfigDict
import numpy as np
import safetensors.numpy

from configs import base
from model.interop import adapt, convert
from model.interop.describe import Format
from model.interop.rules import SHOWN, Read
from training import checkpoint

FORMATS = ("concord", *convert.LIBRARIES)
WEIGHTS = dict(hf="model.safetensors", open_clip="open_clip_model.safetensors")
CONFIGS = dict(hf="config.json", open_clip="open_clip_config.json")
PROCESSOR = "preprocessor_config.json"  # of hf
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
# What tokenizers are made of, by the names that libraries give it.
BESIDE = (
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "vocab.json",
  "merges.txt",
  "spiece.model",
  "tokenizer.model",
)


def main(argv: Sequence[str] | None = None) -> None:
  """Parses the flags, converts and prints what was done."""
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
  parser.add_argument("--vocab", type=int, default=0, help="more ids, behind the old")
  parser.add_argument(
    "--partial", action="store_true", help="read towers with missing arrays, too"
  )
  print(run(parser.parse_args(argv)))


def run(flags: argparse.Namespace) -> str:
  """Does what the flags ask for; returns what to print.

  Raises:
    FileNotFoundError: no checkpoint, or no config.json of one of Concord's.
    FileExistsError: something lies at --to already.
    ValueError: a pickle, another architecture, missing arrays, shapes that contradict
      each other, or a model that the format cannot hold.
  """
  source, to = pathlib.Path(flags.source), pathlib.Path(flags.to)
  if not source.exists():
    raise FileNotFoundError(f"--from {source}: no such file or folder")
  if to.exists() and any(to.iterdir()):
    raise FileExistsError(f"--to {to} is not empty: name another folder")
  if is_concord(source) and flags.format == "concord":
    raise ValueError(f"--from {source} is a checkpoint of Concord's already")
  read = own if is_concord(source) else foreign
  config, params, lines = read(flags)
  config, params, resized = adapt.adapted(
    config, params, size=flags.size, vocab=flags.vocab
  )
  lines.append(f"resized: {', '.join(resized) or 'none'}")
  if flags.format == "concord":
    checkpoint.write_params(flags.to, params)
    checkpoint.save_config(flags.to, config)
    (to / "config.py").write_text(recipe(config, source.name))
    use = f"--config {to / 'config.py'} --config.init_from={to}"
  else:
    state, card = convert.save(config, params, flags.format)
    write(to, flags.format, state, card, pixels_in(config))
    use = str(to)
  lines += copied(source if source.is_dir() else source.parent, to)
  return "\n".join([*lines, f"use it: {use}"])


def is_concord(path: pathlib.Path) -> bool:
  """Returns whether a folder is a workdir, its checkpoints, or one step."""
  found = (path / "state", path / "checkpoints", *path.glob("step_*"))
  return path.is_dir() and any(p.is_dir() for p in found)


def own(flags: argparse.Namespace) -> tuple[ConfigDict, dict[str, Any], list[str]]:
  """Returns (config, parameters, lines on them) of a checkpoint of Concord's.

  Raises:
    FileNotFoundError: no checkpoint, or no config.json.
  """
  folder = pathlib.Path(checkpoint.step_folder(flags.source, "--from"))
  paths = [folder / "config.json", folder.parents[1] / "config.json"]
  for path in paths:
    if path.exists():
      params = checkpoint.read_params(flags.source, "--from")
      config = ConfigDict(json.loads(path.read_text()))
      return config, params, [f"read: a checkpoint of Concord's, {_count(params)}"]
  raise FileNotFoundError(
    f"--from {folder}: no config.json at {paths[0]} or {paths[1]}, which would say "
    "what model the parameters are of"
  )


def foreign(flags: argparse.Namespace) -> tuple[ConfigDict, dict[str, Any], list[str]]:
  """Returns (config, parameters, report) of another library's checkpoint.

  The preprocessing of images is recorded in config.data.eval_transforms.

  Raises:
    FileNotFoundError: a folder without weights.
    ValueError: what `others` and `model.interop.convert.load` refuse.
  """
  state, given, folder = others(pathlib.Path(flags.source))
  config, params, found = convert.load(state, given, partial=flags.partial)
  kind = convert.recognise(state, given)
  crop, pixels = preprocessing(kind.pixels, given, folder)
  config.data.eval_transforms = (
    ("decode_image", {}),
    ("resize", dict(crop=crop)),  # to config.model.modalities.image.size
    ("normalize", pixels),
  )
  return config, params, report(kind, state, given, found)


def others(
  source: pathlib.Path,
) -> tuple[dict[str, np.ndarray], dict[str, Any], pathlib.Path]:
  """Returns a checkpoint's arrays, its config.json ({} without one) and its folder.

  Raises:
    FileNotFoundError: a folder without weights.
    ValueError: pickles only, or a file that is not safetensors.
  """
  folder = source if source.is_dir() else source.parent
  state: dict[str, np.ndarray] = {}
  for path in weights(source):
    try:
      state |= safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as e:
      raise ValueError(f"--from {path} is not a whole safetensors file: {e}") from e
  for name in CONFIGS.values():
    if (folder / name).exists():
      return state, json.loads((folder / name).read_text()), folder
  return state, {}, folder


def weights(source: pathlib.Path) -> list[pathlib.Path]:
  """Returns the safetensors files of a file or a folder, all parts of one in several.

  Raises:
    FileNotFoundError: there are none.
    ValueError: pickles only.
  """
  if source.is_file():
    if source.suffix in PICKLES:
      raise ValueError(_pickle(source))
    return [source]
  for name in WEIGHTS.values():
    if (source / name).exists():
      return [source / name]
    index = source / f"{name}.index.json"
    if index.exists():
      parts = json.loads(index.read_text())["weight_map"].values()
      return [source / part for part in sorted({*parts})]
  for path in sorted(source.iterdir()):
    if path.suffix in PICKLES:
      raise ValueError(_pickle(path))
  raise FileNotFoundError(
    f"--from {source} holds neither {' nor '.join(WEIGHTS.values())}, nor a checkpoint "
    "of Concord's"
  )


def _pickle(path: pathlib.Path) -> str:
  return (
    f"{path} is a pickle, which runs code when it is read: refused. Most checkpoints "
    "are published as safetensors too: take that file. Or, where you trust it, let "
    "transformers write one by model.save_pretrained(folder), or torch by "
    'safetensors.torch.save_file(model.state_dict(), "model.safetensors").'
  )


def preprocessing(
  pixels: Mapping[str, Any], given: Mapping[str, Any], folder: pathlib.Path
) -> tuple[float, dict[str, Any]]:
  """Returns (crop, {mean, std}): what the checkpoint's files say, else `pixels`."""
  path = folder / "preprocessor_config.json"
  said = json.loads(path.read_text()) if path.exists() else {}
  said = {k.removeprefix("image_"): v for k, v in said.items()}
  said |= given.get("preprocess_cfg") or {}
  crop = pixels["crop"]
  if "do_center_crop" in said:
    crop = float(bool(said["do_center_crop"]))
  if "resize_mode" in said:
    crop = float(said["resize_mode"] == "shortest")
  return crop, {k: tuple(said.get(k, pixels[k])) for k in ("mean", "std")}


def pixels_in(config: ConfigDict) -> dict[str, Any]:
  """Returns {mean, std, crop} of config.data.eval_transforms; {} if none normalises."""
  steps = {name: options for name, options in config.data.eval_transforms}
  if "normalize" not in steps:
    return {}
  crop = steps.get("resize", {}).get("crop", 0.0)
  mean, std = (steps["normalize"].get(k, (0.5,) * 3) for k in ("mean", "std"))
  return dict(mean=list(mean), std=list(std), crop=crop)


def recipe(config: ConfigDict, source: str) -> str:
  """Returns the source of a recipe that makes the config from configs/base.py."""
  changes = pprint.pformat(_changes(config, base.get_config()), width=84)
  return (
    f'"""A model converted from {source}; python -m tools.convert wrote this."""\n\n'
    'from configs import base\n\n\ndef get_config(arg: str = ""):\n  del arg\n'
    "  c = base.get_config()\n"
    f"  c.update(\n{changes}\n  )\n  return c\n"
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


def write(
  to: pathlib.Path,
  library: str,
  state: Mapping[str, np.ndarray],
  card: dict[str, Any],
  pixels: Mapping[str, Any],
) -> None:
  """Writes arrays, config and preprocessing by the names that a library looks for."""
  to.mkdir(parents=True, exist_ok=True)
  # transformers refuses files that do not say for whom they are.
  files = WEIGHTS[library], CONFIGS[library]
  safetensors.numpy.save_file(dict(state), to / files[0], metadata={"format": "pt"})
  if pixels and library == "open_clip":
    mode = "shortest" if pixels["crop"] else "squash"
    said = dict(mean=pixels["mean"], std=pixels["std"], resize_mode=mode)
    card = card | dict(preprocess_cfg=said | dict(interpolation="bicubic"))
  elif pixels:
    side, crop = card["vision_config"]["image_size"], bool(pixels["crop"])
    whole = dict(height=side, width=side)
    said = dict(
      image_processor_type="CLIPImageProcessor",
      image_mean=pixels["mean"],
      image_std=pixels["std"],
      do_center_crop=crop,
      crop_size=whole,
      size=dict(shortest_edge=side) if crop else whole,
    )
    (to / PROCESSOR).write_text(json.dumps(said, indent=1, sort_keys=True))
  (to / files[1]).write_text(json.dumps(card, indent=1, sort_keys=True))


def report(
  kind: Format, state: Mapping[str, np.ndarray], given: Mapping[str, Any], found: Read
) -> list[str]:
  """Returns lines on what was loaded, is missing and has no use."""
  lines = [
    f"read: {kind.library}'s {kind.architecture}, {_count(found.params)}",
    f"loaded: {len(found.loaded)} arrays of {len(state)}",
    f"missing, as the model will initialise them: {_some(found.missing)}",
    f"unused: {_some(found.unused)}",
  ]
  if not given:
    lines.append(
      f"no config.json: heads of width 64 and the activation and epsilon that "
      f"{kind.library} takes by default are assumed"
    )
  return lines


def _some(names: Sequence[str]) -> str:
  more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
  return ", ".join(names[:SHOWN]) + more if names else "none"


def copied(folder: pathlib.Path, to: pathlib.Path) -> list[str]:
  """Copies files of tokenizers; returns a line on it, if any."""
  names = [name for name in BESIDE if (folder / name).exists()]
  for name in names:
    shutil.copy(folder / name, to / name)
  return [f"copied, not converted: {', '.join(names)}"] * bool(names)


def _count(params: Mapping[str, Any]) -> str:
  leaves = checkpoint.flatten(params).values()
  return f"{sum(leaf.size for leaf in leaves):,} parameters"


if __name__ == "__main__":
  main()
