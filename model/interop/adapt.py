"""A loaded model for other images, patches or texts than it was made for."""

from collections.abc import Mapping, Sequence
import copy
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np

from model.layers import position

WHERE = "config.model.modalities"


def adapted(
  config: ConfigDict,
  params: Mapping[str, Any],
  *,
  size: int = 0,
  patch: int = 0,
  vocab: int = 0,
  length: int = 0,
) -> tuple[ConfigDict, dict[str, Any], list[str]]:
  """Returns (config, parameters, what was resized) for other sizes.

  Kernels of patches are resampled as in FlexiViT, then learned positions of patches are
  interpolated, bicubically; a class token has none here. Each new id starts as the mean
  of the old ones' embeddings, behind them, so that old texts are encoded as before. Of
  shorter texts the first positions are kept, those of longer ones are interpolated.

  Args:
    config: of the model; not changed.
    params: {"towers": ..., ...}; not changed.
    size: side of the images in pixels; 0: as it is.
    patch: side of the patches in pixels; 0: as it is.
    vocab: number of ids; 0: as it is.
    length: ids of a text; 0: as it is.

  Raises:
    ValueError: images that the patches do not tile, fewer ids, less than nothing, or a
      model without images or texts.
  """
  config = copy.deepcopy(config)
  towers = dict(params["towers"])
  said: list[str] = []
  for keys, modality in (
    ({"size": size, "patch": patch}, "image"),
    ({"vocab": vocab, "length": length}, "text"),
  ):
    for key, value in keys.items():
      if value < 0:
        raise ValueError(f"{key} = {value}, expected at least 1, or 0 for as it is")
    asked = [key for key, value in keys.items() if value]
    if not asked:
      continue
    if modality not in config.model.modalities:
      raise ValueError(
        f"{' and '.join(asked)} cannot change: the model has no {WHERE}.{modality}"
      )
    change = _images if modality == "image" else _texts
    name = f"stem_{modality}"
    node = config.model.modalities[modality]
    towers[name] = change(dict(towers[name]), node, said, **keys)
  return config, {**params, "towers": towers}, said


def _images(
  stem: dict[str, Any], image: ConfigDict, said: list[str], size: int, patch: int
) -> dict[str, Any]:
  """Returns the stem for other images and patches; changes image and said."""
  old = tuple(side // part for side, part in zip(image.size, image.patch, strict=False))
  new_patch = (patch, patch) if patch else tuple(image.patch)
  new_size = (size, size, image.size[2]) if size else tuple(image.size)
  for side, part in zip(new_size, new_patch, strict=False):
    if side % part:
      raise ValueError(
        f"images of {side} pixels are not tiled by {WHERE}.image.patch = "
        f"{new_patch} ({side} % {part} = {side % part})"
      )
  if new_patch != tuple(image.patch):
    kernel = resampled_patches(stem["embed"]["kernel"], image.patch, new_patch)
    stem["embed"] = {**stem["embed"], "kernel": kernel}
    said.append(f"patches of {tuple(image.patch)} -> {new_patch}")
    image.patch = new_patch
  if new_size != tuple(image.size):
    said.append(f"images of {tuple(image.size)} -> {new_size}")
    image.size = new_size
  grid = tuple(side // part for side, part in zip(new_size, new_patch, strict=False))
  if grid != old and "position" in stem:  # fixed ones are made anew
    table = position.resize_positions(stem["position"], old, grid, "bicubic")
    stem["position"] = np.asarray(table)
    said.append(f"positions of {old} -> {grid}")
  return stem


def _texts(
  stem: dict[str, Any], text: ConfigDict, said: list[str], vocab: int, length: int
) -> dict[str, Any]:
  """Returns the stem for more ids or other lengths; changes text and said."""
  if vocab and vocab != text.vocab:
    stem |= _ids(stem, text.vocab, vocab)
    said.append(f"ids {text.vocab} -> {vocab}")
    text.vocab = vocab
  if length and length != text.length:
    if "position" in stem:
      stem["position"] = _positions(np.asarray(stem["position"]), length)
    said.append(f"texts of {text.length} ids -> {length}")
    text.length = length
  return stem


def _positions(table: np.ndarray, length: int) -> np.ndarray:
  if length <= len(table):
    return table[:length]
  return np.asarray(
    position.resize_positions(jnp.asarray(table), (len(table),), (length,))
  )


def _ids(stem: dict[str, Any], old: int, new: int) -> dict[str, Any]:
  if new < old:
    raise ValueError(
      f"{new} ids, and the model has {WHERE}.text.vocab = {old}: expected more, as the "
      "meaning of every id that is left out would be lost"
    )
  table = np.asarray(stem["embed"]["embedding"])
  more = np.broadcast_to(table.mean(axis=0), (new - old, table.shape[1]))
  return {"embed": {"embedding": np.concatenate([table, more])}}


def resampled_patches(
  kernel: np.ndarray, old: Sequence[int], new: Sequence[int]
) -> np.ndarray:
  """Resamples the kernel of patches by a pseudoinverse (FlexiViT, 2212.08013, eq. 4).

  A larger patch that was made of a smaller one by bilinear interpolation gets the same
  token as that one; a smaller one gets the nearest token that there is.

  Args:
    kernel: f32[ph * pw * c, w].
    old: (ph, pw).
    new: height and width of the new patches.

  Returns:
    f32[nh * nw * c, w].
  """
  kernel = np.asarray(kernel)
  pixels, width = old[0] * old[1], kernel.shape[1]
  basis = jnp.eye(pixels, dtype=jnp.float32).reshape(pixels, *old)
  resized = jax.image.resize(basis, (pixels, *new), "linear", antialias=False)
  # float64[old pixels, new pixels]: each old pixel as the resize spreads it.
  spread = np.asarray(resized, np.float64).reshape(pixels, -1)
  out = np.linalg.pinv(spread) @ kernel.reshape(pixels, -1).astype(np.float64)
  return out.reshape(-1, width).astype(np.float32)
