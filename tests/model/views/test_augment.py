"""SimCLR's augmentation: its parts against PIL, colorsys and loops; its draws."""

import colorsys
import itertools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
from PIL import Image
import pytest

from model.types import BATCH_AXES, MESH_AXES
from model.views import augment, pixels

B, H, W = 8, 12, 10
KEY = jax.random.key(3)
OFF = dict(crop=(), flip=0, jitter=0, grayscale=0, blur=0, noise=0)


def images(seed=0):
  """Pixels in 0..1: smooth colours, some grey, some full."""
  x = np.random.default_rng(seed).uniform(size=(B, H, W, 3)).astype(np.float32)
  x[0, :2] = x[0, :2, :, :1]  # grey
  x[1, 0] = [1, 0, 0]
  return x


def each(value):
  return jnp.full(B, value, jnp.float32)


def view(x, key=KEY, **options):
  return np.asarray(augment.View(**(OFF | options))({"image": x}, key)["image"])


def test_all_off_is_the_same_to_the_bit():
  x = images()
  np.testing.assert_array_equal(view(x, mean=0.75, std=0.35), x)
  whole = dict(crop=(1.0, 1.0), ratio=(1.0, 1.0))
  np.testing.assert_array_equal(view(x, **whole), x)
  batch = {"image": x, "id": np.arange(B), "text": np.ones((B, 3), np.int32)}
  out = augment.View(**OFF)(batch, KEY)
  assert out.keys() == batch.keys() and out["text"] is batch["text"]


def test_flip():
  x = images()
  np.testing.assert_array_equal(view(x, flip=1.0), x[:, :, ::-1])
  half = view(x, flip=0.5)
  same = [np.array_equal(a, b) for a, b in zip(half, x)]
  assert 0 < sum(same) < B
  assert all(s or np.array_equal(a, b[:, ::-1]) for s, a, b in zip(same, half, x))


@pytest.mark.parametrize("size", [(H, W), (5, 4)])
def test_a_box_is_cut_and_resized_as_by_pillow(size):
  x = images()
  top, left, height, width = 1.5, 2.25, 7.0, 6.5
  got = pixels.crop(x, *map(each, (top, left, height, width)), size)
  for image, out in zip(x, got):
    for c in range(3):
      plane = Image.fromarray(image[..., c])
      box = (left, top, left + width, top + height)
      want = plane.resize(size[::-1], Image.Resampling.BILINEAR, box=box)
      np.testing.assert_allclose(out[..., c], np.asarray(want), atol=2e-6)


def test_boxes_have_the_area_and_ratio_that_were_asked_for():
  """A ramp along each axis tells where a box begins and how wide it is."""
  n, h, w = 256, 64, 48
  row, column = np.mgrid[:h, :w].astype(np.float32)
  x = np.broadcast_to(np.stack([row, column], axis=-1), (n, h, w, 2))
  options = OFF | dict(crop=(0.2, 0.5), ratio=(0.5, 2.0))
  out = np.asarray(augment.View(**options)({"image": x}, KEY)["image"])
  # Inside, neighbours of the result are (box / size) pixels apart.
  down = (out[:, -4, 5, 0] - out[:, 3, 5, 0]) / (h - 7)
  right = (out[:, 5, -4, 1] - out[:, 5, 3, 1]) / (w - 7)
  area, ratio = down * right, right / down
  assert area.max() <= 0.5 + 1e-4 and area.min() >= 0.2 - 1e-3
  assert 0.2 < area.min() < 0.22 and area.max() > 0.48
  assert 0.5 - 1e-3 < ratio.min() < 0.55 and 1.8 < ratio.max() < 2.0 + 1e-3
  assert out[..., 0].min() >= 0 and out[..., 0].max() <= h - 1


def test_colors_are_brightened_and_saturated():
  x = images()
  factor = np.linspace(0, 2, B, dtype=np.float32)
  of = factor[:, None, None, None]
  gray = (x @ np.float32([0.299, 0.587, 0.114]))[..., None]
  near = dict(rtol=0, atol=1e-6)
  for change, base in (
    (pixels.brighten, np.zeros_like(x)),
    (pixels.contrast, gray.mean(axis=(1, 2, 3), keepdims=True)),
    (pixels.saturate, gray),
  ):
    want = np.clip(base + of * (x - base), 0, 1)
    np.testing.assert_allclose(change(x, factor), want, **near)
  np.testing.assert_allclose(pixels.gray(x), gray, **near)
  got = view(x, grayscale=1.0)
  np.testing.assert_allclose(got, np.broadcast_to(gray, x.shape), **near)


def test_hue_turns_as_in_colorsys():
  x = images()
  turn = np.linspace(-0.5, 0.5, B, dtype=np.float32)
  got = np.asarray(pixels.turn_hue(x, turn))
  for b, i, j in np.ndindex(B, H, W):
    h, s, v = colorsys.rgb_to_hsv(*x[b, i, j].tolist())
    want = colorsys.hsv_to_rgb((h + float(turn[b])) % 1, s, v)
    np.testing.assert_allclose(got[b, i, j], want, atol=2e-6)
  red = np.broadcast_to(np.float32([1, 0, 0]), x.shape)
  green = pixels.turn_hue(red, each(1 / 3))
  np.testing.assert_allclose(green[0, 0, 0], [0, 1, 0], atol=1e-6)


def test_blur_is_a_gaussian_window_inside_the_image():
  x = images()
  sigma = np.linspace(0.3, 2, B, dtype=np.float32)
  got = np.asarray(pixels.blur(x, sigma, 2))
  for b, i, j in ((0, 0, 0), (3, 5, 4), (7, 11, 9), (7, 6, 1)):
    total, weights = 0.0, 0.0
    for k in range(max(i - 2, 0), min(i + 3, H)):
      for l in range(max(j - 2, 0), min(j + 3, W)):
        weight = np.exp(-((k - i) ** 2 + (l - j) ** 2) / (2 * float(sigma[b]) ** 2))
        total, weights = total + weight * x[b, k, l], weights + weight
    np.testing.assert_allclose(got[b, i, j], total / weights, atol=1e-6)
  np.testing.assert_array_equal(pixels.blur(x, sigma, 0), x)


def test_normalised_images_are_jittered_as_pixels_and_others_stay():
  x = images()
  mean, std = (0.7, 0.5, 0.3), (0.2, 0.3, 0.4)
  z = ((x - mean) / std).astype(np.float32)
  options = dict(jitter=0.5, grayscale=0.2)
  got, want = view(z, mean=mean, std=std, **options), view(x, **options)
  np.testing.assert_allclose(got * std + mean, want, atol=2e-6)
  same = [np.array_equal(a, b) for a, b in zip(got, z)]
  assert 0 < sum(same) < B
  noisy = view(z, std=std, noise=0.1) - z
  np.testing.assert_allclose(noisy.std(axis=(0, 1, 2)) * std, 0.1, rtol=0.1)
  assert abs(np.corrcoef(noisy[0].ravel(), noisy[1].ravel())[0, 1]) < 0.2


EVERYTHING = augment.View(noise=0.05, size=(8, 8))


@jax.jit
def everything(x, key):
  return EVERYTHING({"image": x}, key)["image"]


def test_draws_are_of_the_key_and_differ_between_examples():
  x = np.broadcast_to(images()[:1], (B, H, W, 3))
  one = everything(x, KEY)
  assert one.shape == (B, 8, 8, 3)
  np.testing.assert_array_equal(one, everything(x, KEY))
  assert np.abs(one - everything(x, jax.random.key(4))).max() > 0.1
  assert min(np.abs(a - b).max() for a, b in itertools.pairwise(one)) > 0.1


def test_eight_devices_are_one_device():
  x = images()
  want = np.asarray(everything(x, KEY))
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  mesh = jax.make_mesh((2, 2, 2, 1), MESH_AXES, axis_types=auto)
  split = jax.NamedSharding(mesh, P(BATCH_AXES))
  with jax.set_mesh(mesh):
    got = everything(jax.device_put(x, split), KEY)
  assert got.sharding.is_equivalent_to(split, 4)
  np.testing.assert_allclose(got, want, atol=2e-6)


def test_what_cannot_be_is_refused():
  x = images()
  with pytest.raises(ValueError, match=r"has 1 channels.*set jitter = 0 and grayscale"):
    view(x[..., :1], jitter=0.1)
  assert view(x[..., :1], blur=1.0, flip=1.0).shape == (B, H, W, 1)
  with pytest.raises(ValueError, match=r"images \[b, h, w, c\] without a mask"):
    view(x[..., 0])
  with pytest.raises(ValueError, match="and has one"):
    augment.View(**OFF)({"image": x, "image_mask": x[..., 0, 0] > 0}, KEY)
  with pytest.raises(ValueError, match=r"augment.mean = \(0.5, 0.5\), but image has 3"):
    view(x, mean=(0.5, 0.5))
  for options, message in (
    (dict(flip=2), r"augment.flip = 2 must be in \[0, 1\]"),
    (dict(crop=(0.5, 2)), "at most 1"),
    (dict(sigma=(0, 2)), r"0 < low <= high"),
    (dict(hue=-1), "augment.hue = -1 must be at least 0"),
    (dict(size=(4,)), r"augment.size = \(4,\) must be"),
  ):
    with pytest.raises(ValueError, match=message):
      augment.View(**options)
