"""Positions of tokens: learned or fixed tables, and their change of resolution."""

from collections.abc import Sequence
import math

import jax
import jax.numpy as jnp
import numpy as np

from model.types import Array

POSITIONS = ("learned", "sincos", "none")
METHODS = ("bilinear", "bicubic")


def sincos_1d(length: int, width: int, temperature: float = 10_000.0) -> np.ndarray:
  """Returns f32[length, width]: sines, then cosines (arXiv 1706.03762, section 3.5).

  Raises:
    ValueError: an odd width.
  """
  if width % 2:
    raise ValueError(f"1-D sincos positions need an even width, got {width}")
  return _waves(np.arange(length), width // 2, temperature)


def sincos_2d(
  grid: tuple[int, int], width: int, temperature: float = 10_000.0
) -> np.ndarray:
  """Returns f32[rows * columns, width] (arXiv 2104.02057, as in big_vision).

  A quarter of the width each: sin and cos of the column, sin and cos of the row.

  Raises:
    ValueError: a width that is not divisible by 4.
  """
  if width % 4:
    raise ValueError(
      f"2-D sincos positions need a width divisible by 4, got {width} ({width} % 4 = "
      f"{width % 4}): change config.model.trunk.width or the modality's position"
    )
  row, column = np.mgrid[: grid[0], : grid[1]].reshape(2, -1)
  waves = [_waves(p, width // 4, temperature) for p in (column, row)]
  return np.concatenate(waves, axis=-1)


def sincos_3d(
  grid: tuple[int, int, int], width: int, temperature: float = 10_000.0
) -> np.ndarray:
  """Returns f32[frames * rows * columns, width]: a third each of column, row, frame.

  Raises:
    ValueError: a width that is not divisible by 6.
  """
  if width % 6:
    raise ValueError(
      f"3-D sincos positions need a width divisible by 6, got {width} ({width} % 6 = "
      f"{width % 6}): change config.model.trunk.width or the modality's position"
    )
  frame, row, column = np.mgrid[: grid[0], : grid[1], : grid[2]].reshape(3, -1)
  waves = [_waves(p, width // 6, temperature) for p in (column, row, frame)]
  return np.concatenate(waves, axis=-1)


def sincos(grid: Sequence[int], width: int) -> np.ndarray:
  """Returns f32[prod(grid), width] for a grid of one, two or three dimensions."""
  if len(grid) == 1:
    return sincos_1d(grid[0], width)
  if len(grid) == 2:
    return sincos_2d((grid[0], grid[1]), width)
  return sincos_3d((grid[0], grid[1], grid[2]), width)


def resize_positions(
  params: Array,
  old_grid: Sequence[int],
  new_grid: Sequence[int],
  method: str = "bilinear",
) -> Array:
  """Interpolates positions [prod(old_grid), w] to [prod(new_grid), w].

  Corners are not aligned (pixels have an area), and shrinking is antialiased.

  Args:
    params: [n, w], row by row over the old grid.
    old_grid: (length,), (rows, columns) or (frames, rows, columns), in patches.
    new_grid: the same at the new resolution.
    method: "bilinear" | "bicubic".

  Raises:
    ValueError: a table that is not of the old grid, grids of different rank, or an
      unknown method.
  """
  n, width = params.shape
  if math.prod(old_grid) != n or len(old_grid) != len(new_grid):
    raise ValueError(
      f"positions of {n} tokens cannot be resized from the grid {tuple(old_grid)} "
      f"({math.prod(old_grid)} tokens) to {tuple(new_grid)}"
    )
  if method not in METHODS:
    raise ValueError(f"resize method {method!r}, expected one of {METHODS}")
  if tuple(old_grid) == tuple(new_grid):
    return params
  table = jnp.asarray(params).astype(jnp.float32).reshape(*old_grid, width)
  table = jax.image.resize(
    table, (*new_grid, width), "linear" if method == "bilinear" else "cubic"
  )
  return table.reshape(-1, width).astype(params.dtype)


def _waves(at: np.ndarray, count: int, temperature: float) -> np.ndarray:
  # The slowest wave has exactly the period 2 pi * temperature, as in big_vision.
  omega = temperature ** -(np.arange(count) / max(count - 1, 1))
  angle = np.outer(at, omega)
  return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)
