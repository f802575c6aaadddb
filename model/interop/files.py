"""Checkpoints of other libraries on disk: which files, and their arrays; no pickles."""

from collections.abc import Mapping
import json
import pathlib
from typing import Any
import zipfile

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from model.interop import convert

WEIGHTS = dict(
  hf="model.safetensors",
  open_clip="open_clip_model.safetensors",
  big_vision="big_vision.npz",
)
CONFIGS = dict(
  hf="config.json", open_clip="open_clip_config.json", big_vision="big_vision.json"
)
# Keys that only that library's config has: of other files of these names, none.
KEYS = dict(
  hf=(
    "model_type",
    "architectures",
    *(f"{m}_config{old}" for m in ("vision", "text") for old in ("", "_dict")),
    "num_attention_heads",
  ),
  open_clip=("model_cfg", "vision_cfg", "text_cfg"),
  big_vision=("image", "text"),
)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read(
  source: pathlib.Path,
) -> tuple[dict[str, np.ndarray], dict[str, Any], pathlib.Path]:
  """Returns a checkpoint's arrays, its config ({} without one) and its folder.

  The config is that of the library whose arrays they are: a folder may hold several.

  Args:
    source: a file, or a folder with weights, in several parts or one.

  Raises:
    FileNotFoundError: a folder without weights.
    ValueError: pickles only, or a file that is not whole.
  """
  folder = source if source.is_dir() else source.parent
  state: dict[str, np.ndarray] = {}
  for path in weights(source):
    if path.suffix == ".npz":
      state |= _npz(path)
      continue
    try:
      state |= safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as e:
      raise ValueError(f"--from {path} is not a whole safetensors file: {e}") from e
    except (AttributeError, KeyError, TypeError) as e:
      raise ValueError(
        f"--from {path} holds numbers that NumPy has not, such as float8 ({e}): take "
        "the checkpoint in float32, float16 or bfloat16"
      ) from e
  return state, _config(folder, state), folder


def _config(folder: pathlib.Path, state: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Returns the config of the library whose arrays they are, {} without one."""
  try:
    library = convert.recognise(state, {}).library
  except ValueError:
    library = "hf"  # for the message, which says what config.json says
  for name in dict.fromkeys((CONFIGS[library], *CONFIGS.values())):
    said = read_json(folder / name)
    if {*KEYS[library]} & {*said}:
      return said
  return {}


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
      return _parts(index)
  if len(found := sorted(source.glob("*.npz"))) == 1:
    return found
  for path in sorted(source.iterdir()):
    if path.suffix in PICKLES:
      raise ValueError(_pickle(path))
  raise FileNotFoundError(
    f"--from {source} holds neither {' nor '.join(WEIGHTS.values())}, nor a checkpoint "
    "of Concord's"
  )


def _parts(index: pathlib.Path) -> list[pathlib.Path]:
  """Returns the files that an index names.

  Raises:
    ValueError: it names none, or some elsewhere.
  """
  said = read_json(index).get("weight_map")
  names = [*said.values()] if isinstance(said, Mapping) else []
  if not names or any(pathlib.PurePath(str(name)).name != name for name in names):
    raise ValueError(
      f"{index} has no weight_map of arrays' names to files beside it: name the file "
      "of weights instead"
    )
  return [index.parent / name for name in sorted({*names})]


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
  beside: Mapping[str, Any],
) -> None:
  """Writes arrays by the name that a library looks for, and JSON files beside them."""
  to.mkdir(parents=True, exist_ok=True)
  path = to / WEIGHTS[library]
  if path.suffix == ".npz":
    np.savez(path, **dict[str, Any](state))
  else:
    # transformers refuses files that do not say for whom they are.
    safetensors.numpy.save_file(dict(state), path, metadata={"format": "pt"})
  for name, value in beside.items():
    (to / name).parent.mkdir(exist_ok=True)
    (to / name).write_text(json.dumps(value, indent=1, sort_keys=True))


def _npz(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Returns the arrays of an .npz, of which none is unpickled.

  Raises:
    ValueError: not a whole file, or objects in it.
  """
  try:
    with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
      arrays = {name: file[name] for name in file.files}
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as e:
    raise ValueError(f"--from {path} is not a whole .npz of plain arrays: {e}") from e
  # NumPy has no name for bfloat16, and stores two bytes without one.
  brain = ml_dtypes.bfloat16
  return {k: x.view(brain) if x.dtype == "V2" else x for k, x in arrays.items()}


def _pickle(path: pathlib.Path) -> str:
  return (
    f"{path} is a pickle, which runs code when it is read: refused. Most checkpoints "
    "are published as safetensors too: take that file. Or, where you trust it, let "
    "transformers write one by model.save_pretrained(folder), or torch by "
    'safetensors.torch.save_file(model.state_dict(), "model.safetensors").'
  )
