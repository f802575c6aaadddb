"""Shapes of examples, by the config alone: for whoever must not import JAX."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from model import mel


def example_spec(modality: Mapping[str, Any]) -> tuple[tuple[int, ...], np.dtype]:
  """Returns shape and dtype of one example of an entry of config.model.modalities."""
  stem = modality.get("stem", "patches")
  if stem == "tokens":
    return (modality["length"] + modality.get("ngrams", 0),), np.dtype(np.int32)
  if stem == "token_patches":
    return (modality["length"], *modality["patch"]), np.dtype(np.int32)
  if log_mel := modality.get("log_mel"):
    return (modality["size"][0] * log_mel.get("hop", mel.LogMel.hop),), np.dtype(
      np.float32
    )
  return tuple(modality["size"]), np.dtype(np.float32)
