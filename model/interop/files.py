"""Checkpoints of other libraries on disk: which files, and their arrays; no pickles."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

WEIGHTS = dict(hf="model.safetensors", open_clip="open_clip_model.safetensors")
CONFIGS = dict(hf="config.json", open_clip="open_clip_config.json")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read(
  source: pathlib.Path,
) -> tuple[dict[str, np.ndarray], dict[str, Any], pathlib.Path]:
  """Returns a checkpoint's arrays, its config.json ({} without one) and its folder.

  Args:
    source: a file, or a folder with weights, in several parts or one.

  Raises:
    FileNotFoundError: a folder without weights.
    ValueError: pickles only, or a file that is not whole.
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
      return state, read_json(folder / name), folder
  return state, {}, folder


def weights(source: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files of weights of a file or a folder, all parts of one in several.

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
      return [
        source / part for part in sorted({*read_json(index)["weight_map"].values()})
      ]
  for path in sorted(source.iterdir()):
    if path.suffix in PICKLES:
      raise ValueError(_pickle(path))
  raise FileNotFoundError(
    f"--from {source} holds neither {' nor '.join(WEIGHTS.values())}, nor a checkpoint "
    "of Concord's"
  )


def read_json(path: pathlib.Path) -> dict[str, Any]:
  """Returns the object of a JSON file; {} if there is no such file.

  Raises:
    ValueError: it is not JSON, or no object.
  """
  if not path.exists():
    return {}
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as e:
    raise ValueError(f"{path} is not JSON: {e}") from e
  if not isinstance(value, dict):
    raise ValueError(f"{path} holds a {type(value).__name__}, expected an object")
  return value


def write(
  to: pathlib.Path,
  library: str,
  state: Mapping[str, np.ndarray],
  beside: Mapping[str, Mapping[str, Any]],
) -> None:
  """Writes arrays by the name that a library looks for, and JSON files beside them."""
  to.mkdir(parents=True, exist_ok=True)
  # transformers refuses files that do not say for whom they are.
  safetensors.numpy.save_file(
    dict(state), to / WEIGHTS[library], metadata={"format": "pt"}
  )
  for name, value in beside.items():
    (to / name).write_text(json.dumps(value, indent=1, sort_keys=True))


def _pickle(path: pathlib.Path) -> str:
  return (
    f"{path} is a pickle, which runs code when it is read: refused. Most checkpoints "
    "are published as safetensors too: take that file. Or, where you trust it, let "
    "transformers write one by model.save_pretrained(folder), or torch by "
    'safetensors.torch.save_file(model.state_dict(), "model.safetensors").'
  )
