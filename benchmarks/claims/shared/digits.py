"""scikit-learn's 1797 handwritten digits of 8 x 8, and random views of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from model.types import Array, Batch


@dataclasses.dataclass(frozen=True)
class Split:
  """Digits split by sample: images f32[n, 8, 8, 1] in 0..1, labels i32[n]."""

  image: np.ndarray
  label: np.ndarray
  test_image: np.ndarray
  test_label: np.ndarray


def load(seed: int, train: int = 1200, clutter: float = 0.0) -> Split:
  """Returns a random split by seed: `train` digits to learn from, the others to test.

  Args:
    seed: of the split and of the clutter.
    train: digits to learn from.
    clutter: deviation of a smooth random field that lies over each image, for good.

  Raises:
    ValueError: nothing is left to test.
  """
  import sklearn.datasets  # of the demo's requirements: others are to do without it

  data = sklearn.datasets.load_digits()
  image = (data.images[..., None] / 16).astype(np.float32)
  label = data.target.astype(np.int32)
  if not 0 < train < len(label):
    raise ValueError(f"train = {train} must be in 1..{len(label) - 1}")
  rng = np.random.default_rng(seed)
  if clutter:
    image = image + clutter * fields(rng.normal(size=(len(label), 3, 3)))
  order = rng.permutation(len(label))
  a, b = order[:train], order[train:]
  return Split(image[a], label[a], image[b], label[b])


def fields(coarse):
  """Returns f32[n, 8, 8, 1]: [n, 3, 3] between whose values is interpolated."""
  at = np.linspace(0, 2, 8)
  weight = np.maximum(1 - np.abs(at[:, None] - np.arange(3)[None, :]), 0)
  weight = weight.astype(np.float32)
  return (weight @ coarse.astype(np.float32) @ weight.T)[..., None]


def views(batch: Batch, key: Array, count: int = 2, **options) -> dict[str, Array]:
  """Returns batch with views of "image", "image_1", "image_2" ..., in its place.

  Options: those of `view`.
  """
  made = {k: v for k, v in batch.items() if k != "image"}
  for i, one in enumerate(jax.random.split(key, count)):
    made[f"image_{i + 1}"] = view(batch["image"], one, **options)
  return made


def view(
  image: Array,
  key: Array,
  shift: int = 1,
  noise: float = 0.2,
  contrast: float = 0.0,
  erase: int = 0,
  clutter: float = 0.0,
) -> Array:
  """Returns one random view of each image f32[b, h, w, c].

  Args:
    image: f32[b, h, w, c].
    key: of the randomness.
    shift: greatest number of pixels, along each axis.
    noise: deviation added to each pixel.
    contrast: factors from 1 - contrast to 1 + contrast.
    erase: side of a square that is set to 0.
    clutter: deviation of a smooth random field, for 8 x 8 images.
  """
  b, h, w, c = image.shape
  keys = jax.random.split(key, 5)
  place = jax.random.randint(keys[0], (b, 2), 0, 2 * shift + 1)
  padded = jnp.pad(image, ((0, 0), (shift, shift), (shift, shift), (0, 0)))
  cut = jax.vmap(
    lambda x, at: jax.lax.dynamic_slice(x, (at[0], at[1], jnp.int32(0)), (h, w, c))
  )
  image = cut(padded, place)
  if contrast:
    factor = jax.random.uniform(
      keys[1], (b, 1, 1, 1), minval=-contrast, maxval=contrast
    )
    image = image * (1 + factor)
  if erase:
    corner = jax.random.randint(keys[2], (b, 2, 1), 0, h - erase + 1)
    at = jnp.arange(h)[None, None, :] - corner
    inside = (at >= 0) & (at < erase)
    hole = inside[:, 0, :, None] & inside[:, 1, None, :]
    image = jnp.where(hole[..., None], 0.0, image)
  if clutter:
    coarse = jax.random.normal(keys[4], (b, 3, 3))
    image = image + clutter * fields(coarse)
  return image + noise * jax.random.normal(keys[3], image.shape)
