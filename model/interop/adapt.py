"""A loaded model for larger images or more ids than it was made for."""

from collections.abc import Mapping
import copy
from typing import Any

from ml_collections import ConfigDict
import numpy as np

from model.layers import position

WHERE = "config.model.modalities"


def adapted(
  config: ConfigDict, params: Mapping[str, Any], *, size: int = 0, vocab: int = 0
) -> tuple[ConfigDict, dict[str, Any], list[str]]:
  """Returns (config, parameters, what was resized) for another size or vocabulary.

  Learned positions of patches are interpolated, bicubically; a class token has none
  here. Each new id starts as the mean of the old ones' embeddings, behind them, so that
  old texts are encoded as before.

  Args:
    config: of the model; not changed.
    params: {"towers": ..., ...}; not changed.
    size: side of the images in pixels; 0: as it is.
    vocab: number of ids; 0: as it is.

  Raises:
    ValueError: images that the patches do not tile, or fewer ids.
  """
  config = copy.deepcopy(config)
  towers = dict(params["towers"])
  said = []
  modalities = config.model.modalities
  if size and tuple(modalities.image.size[:2]) != (size, size):
    image = modalities.image
    new = (size, size, image.size[2])
    towers["stem_image"] = _positions(dict(towers["stem_image"]), image, new)
    said.append(f"images of {tuple(image.size)} -> {new}")
    image.size = new
  if vocab and vocab != modalities.text.vocab:
    text = modalities.text
    towers["stem_text"] = _ids(dict(towers["stem_text"]), text.vocab, vocab)
    said.append(f"ids {text.vocab} -> {vocab}")
    text.vocab = vocab
  return config, {**params, "towers": towers}, said


def _positions(stem: dict[str, Any], image: ConfigDict, new: tuple) -> dict[str, Any]:
  if new[0] % image.patch[0] or new[1] % image.patch[1]:
    raise ValueError(
      f"images of {new[0]} pixels are not tiled by {WHERE}.image.patch = "
      f"{tuple(image.patch)} ({new[0]} % {image.patch[0]} = {new[0] % image.patch[0]})"
    )
  if "position" in stem:  # fixed ones are made anew
    old, grid = (
      tuple(side // part for side, part in zip(s[:2], image.patch))
      for s in (image.size, new)
    )
    table = position.resize_positions(stem["position"], old, grid, "bicubic")
    stem["position"] = np.asarray(table)
  return stem


def _ids(stem: dict[str, Any], old: int, new: int) -> dict[str, Any]:
  if new < old:
    raise ValueError(
      f"{new} ids, and the model has {WHERE}.text.vocab = {old}: expected more, as the "
      "meaning of every id that is left out would be lost"
    )
  table = np.asarray(stem["embed"]["embedding"])
  more = np.broadcast_to(table.mean(axis=0), (new - old, table.shape[1]))
  return stem | {"embed": {"embedding": np.concatenate([table, more])}}
