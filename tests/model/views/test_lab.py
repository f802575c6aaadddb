"""Lab of known colours, and which channels a view keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.transforms import lab as on_host
from model.views import lab

KEY = jax.random.key(0)
# As scikit-image's rgb2lab (D65, 2 degrees) converts them.
KNOWN = {
  (1.0, 0.0, 0.0): (53.2406, 80.0923, 67.2028),
  (0.0, 1.0, 0.0): (87.7351, -86.1830, 83.1797),
  (0.0, 0.0, 1.0): (32.2957, 79.1856, -107.8573),
  (1.0, 1.0, 0.0): (97.1393, -21.5537, 94.4780),
  (1.0, 1.0, 1.0): (100.0, 0.0, 0.0),
  (0.0, 0.0, 0.0): (0.0, 0.0, 0.0),
  (0.5, 0.5, 0.5): (53.3890, 0.0, 0.0),
  (0.02, 0.02, 0.02): (1.3983, 0.0, 0.0),  # by both linear branches
}


def test_known_colours():
  got = lab.from_rgb(jnp.asarray(list(KNOWN), jnp.float32))
  np.testing.assert_allclose(got, list(KNOWN.values()), atol=0.01)


@pytest.mark.parametrize(
  ("keep", "kept"), [("l", [0]), ("ab", [1, 2]), ("lab", [0, 1, 2])]
)
def test_keeps_some_channels_of_normalised_pixels_and_scales_them(keep, kept):
  rgb = np.asarray(list(KNOWN), np.float32).reshape(2, 2, 2, 3)
  mean, std = (0.5, 0.25, 0.75), 0.5
  image = (rgb - np.float32(mean)) / np.float32(std)
  view = lab.View(keep=keep, mean=mean, std=std)
  out = view({"image": image, "text": np.ones(2)}, KEY)
  got = out["image"]
  low, high = np.float32(lab.LOW), np.float32(lab.HIGH)
  want = 2 * (np.float32(list(KNOWN.values())) - low) / (high - low) - 1
  want = want.reshape(got.shape)
  np.testing.assert_allclose(got[..., kept], want[..., kept], atol=2e-4)
  assert np.abs(got).max() <= 1.001
  others = [c for c in range(3) if c not in kept]
  np.testing.assert_array_equal(got[..., others], 0)
  assert out.keys() == {"image", "text"}


def test_the_transform_of_the_host_is_the_view_of_all_channels():
  image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
  image[0, 0, :4] = np.array([0, 1, 10, 11])[:, None]  # about where the curves begin
  host = on_host.Transform()({"image": image[0]}, None)["image"]
  assert host.dtype == np.float32
  view = lab.View()({"image": image.astype(np.float32) / 255}, KEY)["image"][0]
  np.testing.assert_allclose(view, host, atol=1e-5)


def test_the_slope_is_finite_in_the_dark():
  slope = jax.grad(lambda x: jnp.sum(lab.from_rgb(x)))(jnp.zeros(3))
  assert np.isfinite(slope).all()


def test_what_is_no_rgb_image_is_an_error():
  with pytest.raises(ValueError, match=r"image is \(2, 4, 4, 1\)"):
    lab.View()({"image": np.zeros((2, 4, 4, 1))}, KEY)
  with pytest.raises(ValueError, match=r"keep = 'rgb' must be one of \('l', 'ab'"):
    lab.View(keep="rgb")
