"""The recipe of a run, from the config.json that it left in its workdir.

Keys that came after the run take the defaults of configs/base.py, so that runs of older
versions can be read; so do the options of `moe`, but not entries of its open mappings
(losses, min_experts, warn), where an absent one means "off".
"""

from collections.abc import Mapping
import json
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from configs import base

# Mappings whose keys are the recipe's own: an absent one is not to be filled in.
OPEN = ("modalities", "options", "losses", "min_experts", "warn", "mesh")


def read(workdir: str) -> ConfigDict:
  """Returns the config of a run, complete.

  Raises:
    FileNotFoundError: no config.json there.
    ValueError: it is not JSON.
  """
  path = epath.Path(workdir) / "config.json"
  if not path.exists():
    raise FileNotFoundError(
      f"no config.json in {str(workdir)!r}: give the --workdir of a run, or --config"
    )
  try:
    saved = json.loads(path.read_text())
  except json.JSONDecodeError as e:
    raise ValueError(f"{path} is not JSON: {e}") from e
  return complete(saved)


def complete(saved: Mapping[str, Any]) -> ConfigDict:
  """Returns the config of a run's JSON, with the defaults of the keys that it lacks."""
  config = ConfigDict(dict(saved), convert_dict=True)
  _fill(config, base.get_config())
  for modality in config.model.modalities.values():
    _fill(modality, base.modality())
  return config


def _fill(config: ConfigDict, default: ConfigDict) -> None:
  for key, value in default.items():
    if key not in config:
      config[key] = value
    elif isinstance(value, ConfigDict) and key not in OPEN and key != "trunk":
      _fill(config[key], value)
  if "trunk" in default and default.trunk:  # a modality's own holds overrides only
    _fill(config.trunk, default.trunk)
