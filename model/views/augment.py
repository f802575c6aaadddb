"""Another look at the same image: SimCLR's augmentation (arXiv 2002.05709, appendix A).

crop and resize -> flip -> jitter of colours -> grayscale -> blur -> noise

Differences from the paper: the four jitters come in one order (brightness, contrast,
saturation, hue), there in a random one; a box that would be larger than the image is
cut to it, there drawn again; near an edge, blur averages what is inside, there with
zeros; noise is not in the paper.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from model.types import Array, Batch
from model.views import pixels

Range = tuple[float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
  """Augments one modality of a batch; each example by draws of its own.

  With a `size` smaller than the images and a `crop` of small areas these are the local
  crops of multi-crop (arXiv 2006.09882): towers interpolate their positions.

  Attributes:
    modality: of the batch: normalised f32[b, h, w, c].
    mean: what normalising subtracted from pixels in 0..1: one number, or c.
    std: what it then divided by.
    crop: least and most area of the box, over that of the image; (): no crop.
    ratio: least and most width / height of the box, over that of the image; the
      logarithm is uniform.
    size: (height, width) of the result; (): that of the input.
    flip: probability of a horizontal flip.
    jitter: probability that the colours change, by the four that follow.
    brightness: factor uniform in 1 +- this (at least 0).
    contrast: the same, around the image's mean grey.
    saturation: the same, around each pixel's grey.
    hue: turn of the colour circle, uniform in +- this; 0.5 is the opposite colour.
    grayscale: probability of no colour at all.
    blur: probability of a Gaussian blur.
    sigma: its least and greatest standard deviation, in pixels.
    window: its width, over the height of the image.
    noise: standard deviation of Gaussian noise, of pixels in 0..1.

  Raises:
    ValueError: an option out of its range.
  """

  modality: str = "image"
  mean: float | tuple[float, ...] = 0.0
  std: float | tuple[float, ...] = 1.0
  crop: Range | tuple[()] = (0.08, 1.0)
  ratio: Range = (3 / 4, 4 / 3)
  size: tuple[int, int] | tuple[()] = ()
  flip: float = 0.5
  jitter: float = 0.8
  brightness: float = 0.8
  contrast: float = 0.8
  saturation: float = 0.8
  hue: float = 0.2
  grayscale: float = 0.2
  blur: float = 0.5
  sigma: Range = (0.1, 2.0)
  window: float = 0.1
  noise: float = 0.0

  def __post_init__(self):
    for key in ("flip", "jitter", "grayscale", "blur"):
      if not 0 <= getattr(self, key) <= 1:
        raise ValueError(f"augment.{key} = {getattr(self, key)} must be in [0, 1]")
    for key in ("brightness", "contrast", "saturation", "hue", "window", "noise"):
      if getattr(self, key) < 0:
        raise ValueError(f"augment.{key} = {getattr(self, key)} must be at least 0")
    for key in ("crop", "ratio", "sigma"):
      limits = getattr(self, key)
      if limits and not (len(limits) == 2 and 0 < limits[0] <= limits[1]):
        raise ValueError(
          f"augment.{key} = {limits} must be (low, high), 0 < low <= high"
        )
    if self.crop and self.crop[1] > 1:
      raise ValueError(f"augment.crop = {self.crop} is of the image's area: at most 1")
    if self.size and (len(self.size) != 2 or min(self.size) < 1):
      raise ValueError(f"augment.size = {self.size} must be (height, width) or ()")

  @property
  def denormalises(self) -> bool:
    """Says whether `mean` and `std` matter."""
    return bool(self.jitter or self.grayscale or self.noise)

  def __call__(self, batch: Batch, key: Array) -> Batch:
    """Returns the batch with another look at its modality, f32[b, *size, c].

    Raises:
      ValueError: what is no batch of images, has a mask, or colours other than RGB to
        be changed.
    """
    x = batch[self.modality]
    self._check(x, f"{self.modality}_mask" in batch)
    keys = jax.random.split(key, 4)
    x = self._recolor(self._place(x.astype(jnp.float32), keys[0]), keys[1])
    if self.blur:
      x = self._blur(x, keys[2])
    if self.noise:
      spread = self.noise / _per_channel(self.std, x)
      x = x + spread * jax.random.normal(keys[3], x.shape)
    return {**batch, self.modality: x}

  def _check(self, x: Array, masked: bool) -> None:
    if x.ndim != 4 or masked:
      raise ValueError(
        f"augment changes images [b, h, w, c] without a mask; {self.modality} is "
        f"{x.shape}{' and has one' if masked else ''}"
      )
    c = x.shape[-1]
    if c != 3 and (self.jitter or self.grayscale):
      raise ValueError(
        f"{self.modality} has {c} channels, but colours are of 3: set jitter = 0 and "
        "grayscale = 0 of augment in config.objective.options.views"
      )
    for key in ("mean", "std"):
      value = getattr(self, key)
      if isinstance(value, tuple) and len(value) != c:
        raise ValueError(
          f"augment.{key} = {value}, but {self.modality} has {c} channels"
        )

  def _place(self, x: Array, key: Array) -> Array:
    """Crops, resizes and flips."""
    b, h, w, _ = x.shape
    size = self.size or (h, w)
    area_key, ratio_key, place_key, flip_key = jax.random.split(key, 4)
    if self.crop or size != (h, w):
      low, high = self.crop or (1.0, 1.0)
      side = jnp.sqrt(jax.random.uniform(area_key, (b,), minval=low, maxval=high))
      low, high = (math.log(r) / 2 for r in (self.ratio if self.crop else (1.0, 1.0)))
      stretch = jnp.exp(jax.random.uniform(ratio_key, (b,), minval=low, maxval=high))
      height, width = (
        h * jnp.minimum(side / stretch, 1),
        w * jnp.minimum(side * stretch, 1),
      )
      top, left = jax.random.uniform(place_key, (2, b))
      x = pixels.crop(x, top * (h - height), left * (w - width), height, width, size)
    if self.flip:
      x = pixels.flip(x, _drawn(flip_key, self.flip, b))
    return x

  def _recolor(self, x: Array, key: Array) -> Array:
    """Jitters the colours and drops them; other images stay as they are, to the bit."""
    if not (self.jitter or self.grayscale):
      return x
    b = x.shape[0]
    jitter_key, gray_key, draw_key = jax.random.split(key, 3)
    mean, std = _per_channel(self.mean, x), _per_channel(self.std, x)
    y = jnp.clip(x * std + mean, 0.0, 1.0)
    changed = _drawn(jitter_key, self.jitter, b)
    y = jnp.where(changed[:, None, None, None], self._jitter(y, draw_key), y)
    colorless = _drawn(gray_key, self.grayscale, b)
    y = jnp.where(colorless[:, None, None, None], pixels.gray(y), y)
    return jnp.where((changed | colorless)[:, None, None, None], (y - mean) / std, x)

  def _jitter(self, y: Array, key: Array) -> Array:
    steps = (
      (pixels.brighten, self.brightness, 1.0),
      (pixels.contrast, self.contrast, 1.0),
      (pixels.saturate, self.saturation, 1.0),
      (pixels.turn_hue, self.hue, 0.0),
    )
    for i, (change, strength, middle) in enumerate(steps):
      if strength:
        draw = jax.random.uniform(
          jax.random.fold_in(key, i), y.shape[:1], minval=-strength, maxval=strength
        )
        factor = middle + draw
        y = change(y, jnp.maximum(factor, 0.0) if middle else factor)
    return y

  def _blur(self, x: Array, key: Array) -> Array:
    b, h = x.shape[:2]
    radius = int(self.window * h) // 2
    sigma_key, blur_key = jax.random.split(key)
    low, high = self.sigma
    sigma = jax.random.uniform(sigma_key, (b,), minval=low, maxval=high)
    blurred = _drawn(blur_key, self.blur, b)
    return jnp.where(blurred[:, None, None, None], pixels.blur(x, sigma, radius), x)


def _drawn(key: Array, probability: float, b: int) -> Array:
  """Returns bool[b]."""
  return jax.random.bernoulli(key, float(probability), (b,))


def _per_channel(value: float | tuple[float, ...], x: Array) -> Array:
  """Returns f32[1, 1, 1, c]."""
  return jnp.broadcast_to(jnp.asarray(value, jnp.float32), x.shape[-1:])[
    None, None, None
  ]
