"""Stems: a raw array becomes tokens [b, n, w] and says which of them are real.

`Patches` serves images and every other map of two dimensions (spectrograms, series,
piano rolls) or three (videos). `Tokens` serves every sequence of ids, `TokenPatches`
ids by lines or bars. A new modality is a config entry.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from model.layers import log_mel as spectrogram
from model.layers import look_up as tables
from model.layers import matmul
from model.layers import position as positions
from model.mel import LogMel
from model.types import Array


class Patches(nn.Module):
  """Cuts an array into patches and maps each to a token (arXiv 2010.11929, eq. 1).

  Patches of a video are tubelets (arXiv 2103.15691, section 3.2).

  Attributes:
    width: of a token.
    size: (height, width, channels) of the input; channels 1 for [b, t, f]. Of a video
      (frames, height, width, channels).
    patch: (height, width) of a patch; of a video (frames, height, width).
    position: "learned" | "sincos" | "none".
    bias: whether the map has one.
    drop: share of the patches that training leaves out, another choice for each example
      and step: cheaper, and a regulariser (FLIP, arXiv 2212.00794).
    log_mel: options of the spectrogram that is made of a waveform; None: there is none.
    name_of: the modality, for error messages.
    dtype: of the result.

  Parameters (f32): embed/kernel [patch values, w], embed/bias [w]; position [n, w].
  Random stream while training with drop > 0: "dropout".
  """

  width: int
  size: tuple[int, ...]
  patch: tuple[int, ...]
  position: str = "learned"
  bias: bool = True
  drop: float = 0.0
  log_mel: LogMel | None = None
  name_of: str = "image"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Array, mask: Array | None = None, train: bool = False
  ) -> tuple[Array, Array | None]:
    """Cuts and embeds.

    Images and videos of another size than `size` get interpolated positions; features
    [b, t, f] may be shorter than `size` along t, and keep the first positions.

    Args:
      x: float [b, h, w, c], [b, t, f], [b, t, h, w, c] of a video, or, with `log_mel`,
        [b, samples].
      mask: bool[b, h], True for a real frame (row); padded frames count as 0. Of a
        waveform bool[b, samples].
      train: whether to leave patches out.

    Returns:
      dtype [b, n, w], row by row; bool[b, n], True where a patch holds any real frame,
      or None without a mask. With patches left out, round((1 - drop) * n) of them, at
      least 1, in order.

    Raises:
      ValueError: an input that the patches do not tile, or not of `size`'s features.
      TypeError: integers, which nobody has normalised.
    """
    where = f"config.model.modalities.{self.name_of}"
    if mask is not None and mask.shape != x.shape[:2]:
      raise ValueError(
        f"{self.name_of}_mask has shape {mask.shape}, expected {x.shape[:2]}: one "
        f"entry per frame (axis 1) of {self.name_of}"
      )
    self._check_dtype(x)
    if self.log_mel is not None and x.ndim == 2:
      x, mask = spectrogram.log_mel(x, mask, self.log_mel)
    features = len(self.patch) == 2 and x.ndim == 3
    if features:
      x = x[..., None]
    grid = self._grid(x, features, where)
    # What follows is a reshape and one matmul: the same as a strided convolution.
    x, mask = _cut(x.astype(self.dtype), mask, grid, self.patch)
    table = self._positions(grid, features)
    if table is not None:
      table = table.astype(self.dtype)[None]
    if train and self.drop:
      # Before the embedding, so that what is left out costs nothing. The positions are
      # picked by a product: the gradient of a look-up is a scatter, slow on CPU.
      kept = self._kept(x, mask)
      x = jnp.take_along_axis(x, kept[:, :, None], axis=1)
      if mask is not None:
        mask = jnp.take_along_axis(mask, kept, axis=1)
      if table is not None:
        pick = jax.nn.one_hot(kept, table.shape[1], dtype=self.dtype)
        table = matmul.dot_general(pick, table[0], (((2,), (0,)), ((), ())))
    x = nn.Dense(
      self.width,
      use_bias=self.bias,
      dtype=self.dtype,
      dot_general=matmul.dot_general,
      name="embed",
    )(x)
    return (x if table is None else x + table), mask

  def _kept(self, x: Array, mask: Array | None) -> Array:
    """Returns int32[b, kept]: sorted indices of the patches that stay."""
    b, n, _ = x.shape
    count = max(1, round((1 - self.drop) * n))
    draw = jax.random.uniform(self.make_rng("dropout"), (b, n))
    if mask is not None:  # one real patch stays, or nothing would be left to pool
      first = jnp.argmin(jnp.where(mask, draw, 2.0), axis=1)
      draw = jnp.where(jnp.arange(n)[None] == first[:, None], -1.0, draw)
    return jnp.sort(jnp.argsort(draw, axis=1)[:, :count], axis=1)

  def _check_dtype(self, x: Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
      raise TypeError(
        f"{self.name_of} has dtype {x.dtype}, expected normalised floats: add a "
        "normalising transform to config.data.transforms"
      )

  def _grid(self, x: Array, features: bool, where: str) -> tuple[int, ...]:
    if x.ndim != len(self.patch) + 2:
      waveform = "; a waveform needs its log_mel" if x.ndim == 2 else ""
      raise ValueError(
        f"{self.name_of} is {x.shape}, expected [b, {', '.join(map(str, self.size))}] "
        f"({where}.size{waveform})"
      )
    *sides, c = x.shape[1:]
    if any(side % part for side, part in zip(sides, self.patch)):
      rests = (f"{s} % {p} = {s % p}" for s, p in zip(sides, self.patch))
      raise ValueError(
        f"{self.name_of} of {' x '.join(map(str, sides))} is not tiled by "
        f"{where}.patch = {self.patch} ({', '.join(rests)})"
      )
    if c != self.size[-1]:
      raise ValueError(
        f"{self.name_of} has {c} channels, expected {self.size[-1]} ({where}.size = "
        f"{self.size})"
      )
    if features and (sides[1] != self.size[1] or sides[0] > self.size[0]):
      raise ValueError(
        f"{self.name_of} is [b, {sides[0]}, {sides[1]}], expected at most "
        f"{self.size[0]} frames of {self.size[1]} features ({where}.size = {self.size})"
      )
    return tuple(side // part for side, part in zip(sides, self.patch))

  def _positions(self, grid: tuple[int, ...], features: bool) -> Array | None:
    own = tuple(side // part for side, part in zip(self.size, self.patch))
    table = _table(self, self.position, own, self.width)
    if table is None or grid == own:
      return table
    if features:
      return table[: math.prod(grid)]
    return positions.resize_positions(table, own, grid)


def _cut(
  x: Array, mask: Array | None, grid: tuple[int, ...], patch: tuple[int, ...]
) -> tuple[Array, Array | None]:
  """Returns patches [b, n, values] of [b, *sides, c], and their mask bool[b, n]."""
  if mask is not None:
    # A patch may be half real: what padding holds must not reach its token.
    real = mask.reshape(*mask.shape, *(1,) * len(patch))
    x = jnp.where(real, x, jnp.zeros((), x.dtype))
    mask = mask.reshape(-1, grid[0], patch[0]).any(axis=-1)
    mask = jnp.repeat(mask, math.prod(grid[1:]), axis=1)
  sides = [n for side in zip(grid, patch) for n in side]
  last = 1 + len(sides)
  x = x.reshape(-1, *sides, x.shape[-1])
  x = x.transpose(0, *range(1, last, 2), *range(2, last, 2), last)
  return x.reshape(x.shape[0], math.prod(grid), -1), mask


class Tokens(nn.Module):
  """Looks ids up in a table and adds their positions.

  Attributes:
    width: of a token.
    vocab: number of ids, that of padding included.
    length: most ids of an example.
    pad: the id of padding; -1: all ids are real.
    eos: the id that ends a text: the first is real, what follows is not; -1: none is.
    position: "learned" | "sincos" | "none".
    name_of: the modality, for error messages.
    dtype: of the result.

  Parameters (f32): embed/embedding [vocab, w]; position [length, w].
  """

  width: int
  vocab: int
  length: int
  pad: int = 0
  eos: int = -1
  position: str = "learned"
  name_of: str = "text"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Array, mask: Array | None = None, train: bool = False
  ) -> tuple[Array, Array]:
    """Embeds.

    Args:
      x: int[b, n] with n <= length; a shorter sequence keeps the first positions.
      mask: bool[b, n], True for a real id; None: as `pad` and `eos` say.
      train: changes nothing.

    Returns:
      dtype [b, n, w] and the mask.

    Raises:
      ValueError: more ids than `length`, or a mask of another shape.
      TypeError: ids that are not integers.
    """
    del train
    if not jnp.issubdtype(x.dtype, jnp.integer) or x.ndim != 2:
      raise TypeError(f"{self.name_of} is {x.dtype}{x.shape}, expected int[b, n] ids")
    if x.shape[1] > self.length:
      raise ValueError(
        f"{self.name_of} has {x.shape[1]} ids, expected at most "
        f"config.model.modalities.{self.name_of}.length = {self.length}"
      )
    if mask is None:
      mask = self._real(x)
    elif mask.shape != x.shape:
      raise ValueError(
        f"{self.name_of}_mask has shape {mask.shape}, expected {x.shape}"
      )
    embed = nn.Embed(
      self.vocab,
      self.width,
      dtype=self.dtype,
      embedding_init=nn.initializers.normal(self.width**-0.5),
      name="embed",
    )
    y = tables.look_up(embed.embedding.astype(self.dtype), x)
    table = _table(self, self.position, (self.length,), self.width)
    if table is not None:
      y = y + table[: x.shape[1]].astype(self.dtype)[None]
    return y, mask

  def _real(self, x: Array) -> Array:
    real = x != self.pad if self.pad >= 0 else jnp.ones(x.shape, bool)
    if self.eos < 0:
      return real
    end = x == self.eos
    ends = jnp.cumsum(end, axis=1)
    return real & ((ends == 0) | (end & (ends == 1)))


class TokenPatches(nn.Module):
  """Maps patches of ids, such as the bars of a tune, to a token each.

  The one-hot ids of a patch, side by side, go through one linear map (CLaMP, arXiv
  2304.11029, section 3.1): a letter means another thing at another place of its patch.

  Attributes:
    width: of a token.
    vocab: number of ids, that of padding included.
    size: (patches, ids of a patch), the patches being at most so many.
    pad: the id of padding, which adds nothing; -1: all ids are real.
    bias: whether the map has one.
    position: "learned" | "sincos" | "none".
    name_of: the modality, for error messages.
    dtype: of the result.

  Parameters (f32): embed/kernel [ids of a patch * vocab, w], embed/bias [w]; position
  [patches, w].
  """

  width: int
  vocab: int
  size: tuple[int, ...]
  pad: int = 0
  bias: bool = True
  position: str = "learned"
  name_of: str = "music"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(
    self, x: Array, mask: Array | None = None, train: bool = False
  ) -> tuple[Array, Array]:
    """Embeds.

    Args:
      x: int[b, n, ids], n at most size[0]; fewer patches keep the first positions.
      mask: bool[b, n], True for a real patch; None: those with an id that is real.
      train: changes nothing.

    Returns:
      dtype [b, n, w] and the mask.

    Raises:
      ValueError: more patches or other ones than `size`, or a mask of another shape.
      TypeError: ids that are not integers.
    """
    del train
    where = f"config.model.modalities.{self.name_of}"
    if not jnp.issubdtype(x.dtype, jnp.integer) or x.ndim != 3:
      raise TypeError(f"{self.name_of} is {x.dtype}{x.shape}, expected int[b, n, ids]")
    if x.shape[1] > self.size[0] or x.shape[2] != self.size[1]:
      raise ValueError(
        f"{self.name_of} has {x.shape[1]} patches of {x.shape[2]} ids, expected at "
        f"most {where}.length = {self.size[0]} of {where}.patch = ({self.size[1]},)"
      )
    real = x != self.pad if self.pad >= 0 else jnp.ones(x.shape, bool)
    if mask is None:
      mask = real.any(axis=-1)
    elif mask.shape != x.shape[:2]:
      raise ValueError(
        f"{self.name_of}_mask has shape {mask.shape}, expected {x.shape[:2]}"
      )
    # Not a look-up, whose gradient scatters n * ids rows: a product, as the trunk's.
    hot = jax.nn.one_hot(jnp.where(real, x, -1), self.vocab, dtype=self.dtype)
    y = nn.Dense(
      self.width,
      use_bias=self.bias,
      dtype=self.dtype,
      dot_general=matmul.dot_general,
      name="embed",
    )(hot.reshape(*x.shape[:2], -1))
    table = _table(self, self.position, self.size[:1], self.width)
    if table is not None:
      y = y + table[: x.shape[1]].astype(self.dtype)[None]
    return y, mask


def _table(
  module: nn.Module, kind: str, grid: tuple[int, ...], width: int
) -> Array | None:
  """Returns f32[prod(grid), width], or None."""
  if kind == "learned":
    init = nn.initializers.normal(width**-0.5)
    return module.param("position", init, (math.prod(grid), width))
  return jnp.asarray(positions.sincos(grid, width)) if kind == "sincos" else None
