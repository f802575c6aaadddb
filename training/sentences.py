"""What sentence-transformers writes beside a tower of texts: its pooling, its length.

`modules.json` says what a text goes through. Ours has a transformer and a pooling; that
the embedding is of unit length then is what ours are anyway.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

from model.interop import files

# What a text may go through, in this order, by the last part of its class' name.
TRANSFORMERS = ("Transformer", "CLIPModel")
PARTS = (*TRANSFORMERS, "Pooling", "Normalize")
POOLS = dict(mean="mean", cls="first")  # theirs -> ours
# Until version 5 each had a key, true or false.
_OLDER = dict(
  pooling_mode_cls_token="cls",
  pooling_mode_max_tokens="max",
  pooling_mode_mean_tokens="mean",
  pooling_mode_mean_sqrt_len_tokens="mean_sqrt_len_tokens",
  pooling_mode_weightedmean_tokens="weightedmean",
  pooling_mode_lasttoken="lasttoken",
)


@dataclasses.dataclass(frozen=True)
class Sentences:
  """What `read` returns.

  Attributes:
    pool: of our text modality; "": nothing is said.
    length: most ids of a text; 0: nothing is said.
    lowercase: whether texts are put in lower case first.
  """

  pool: str = ""
  length: int = 0
  lowercase: bool = False


def parts(root: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns name -> folder of what modules.json lists; {} without one.

  Raises:
    ValueError: not a list of modules, or one that we have not.
  """
  path = root / "modules.json"
  if not path.exists():
    return {}
  try:
    said = json.loads(path.read_text(encoding="utf-8"))
    found = {m["type"]: root / m["path"] for m in said}
  except (ValueError, TypeError, KeyError) as e:
    raise ValueError(f"{path} is not a list of modules with type and path: {e}") from e
  names = [str(kind).rpartition(".")[2] for kind in found]
  for place in found.values():
    if not place.resolve().is_relative_to(root.resolve()):
      raise ValueError(f"{path} names {place}, which lies outside its folder")
  odd = [k for k in found if not str(k).startswith("sentence_transformers.")]
  known = [name for name in PARTS if name in names]
  if odd or names != known or len(found) != len(said):
    raise ValueError(
      f"{path} lists {', '.join(map(str, found))}: expected Transformer, Pooling and "
      "Normalize of sentence_transformers, in this order, and no other: our towers of "
      "texts have nothing else"
    )
  return dict(zip(names, found.values(), strict=True))


def places(source: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
  """Returns (the folder of modules.json, where the weights are looked for).

  Args:
    source: that folder, the folder of its transformer, or the file of the weights.

  Raises:
    ValueError: as of `parts`.
  """
  folder = source if source.is_dir() else source.parent
  above = parts(folder.parent) if not (folder / "modules.json").exists() else {}
  if any(path.resolve() == folder.resolve() for path in above.values()):
    return folder.parent, source
  found = parts(folder)
  inside = next((found[name] for name in TRANSFORMERS if name in found), folder)
  return folder, source if source.is_file() else inside


def read(root: pathlib.Path, folder: pathlib.Path) -> Sentences:
  """Returns what is said of texts.

  Args:
    root: where modules.json lies, if there is one.
    folder: where the weights lie.

  Raises:
    ValueError: a pooling that our towers have not, or a value that is none.
  """
  file = "sentence_bert_config.json"
  said = files.read_json(folder / file)
  lowercase = said.get("do_lower_case") or False
  if not isinstance(lowercase, bool):
    raise _wrong(folder / file, "do_lower_case", lowercase, "true or false")
  length = _length(folder / file, said, "max_seq_length")
  if not length:  # where version 6 keeps it; 1e30 says that there is none
    file = "tokenizer_config.json"
    length = _length(folder / file, files.read_json(folder / file), "model_max_length")
  pooling = parts(root).get("Pooling", root / "1_Pooling") / "config.json"
  return Sentences(_pool(pooling), length, lowercase)


def _length(path: pathlib.Path, said: Mapping[str, Any], key: str) -> int:
  value = said.get(key)
  if value is None:
    return 0
  if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1:
    raise _wrong(path, key, value, "a number of ids, or null")
  return int(min(value, 10**9))


def _pool(path: pathlib.Path) -> str:
  """Returns our name of a pooling; "" if there is no such file."""
  said = files.read_json(path)
  if not said:
    return ""
  modes = said.get("pooling_mode")
  if modes is None:
    modes = [mode for key, mode in _OLDER.items() if said.get(key)] or ["mean"]
  modes = [modes] if isinstance(modes, str) else modes
  if not isinstance(modes, list) or len(modes) != 1 or modes[0] not in POOLS:
    raise _wrong(path, "pooling_mode", modes, f"one of {', '.join(POOLS)}")
  return POOLS[modes[0]]


def _wrong(path: pathlib.Path, key: str, value: Any, expected: str) -> ValueError:
  return ValueError(f"{path}: {key} = {value!r}, expected {expected}: mend the file")
