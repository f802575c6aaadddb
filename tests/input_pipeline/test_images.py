"""Boxes of encoded images: the right pixels, by the fewest of them decoded."""

import io

import jax
import numpy as np
from PIL import Image
import pytest

from input_pipeline import images, pipeline
from input_pipeline.drop import Drop
from input_pipeline.transforms import (
  decode_image,
  normalize,
  random_resized_crop,
  resize,
)
from sharding import mesh as meshes
from tests.input_pipeline.test_transforms import encoded
from training import setup as setup_lib

METHODS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def photo(width, height, seed=0):
  """Returns smooth shapes, edges and grain, as a photo has."""
  rng = np.random.default_rng(seed)
  coarse = Image.fromarray(rng.integers(0, 255, (9, 12, 3)).astype(np.uint8))
  pixels = np.asarray(coarse.resize((width, height), METHODS["bicubic"])).astype(int)
  pixels[height // 3 : height // 2, width // 4 : width // 2] //= 3
  grain = rng.normal(0, 3, (height, width, 1))
  return Image.fromarray(np.clip(pixels + grain, 0, 255).astype(np.uint8))


def jpeg(image, turn=1, **options):
  exif = Image.Exif()
  exif[0x0112] = turn
  return encoded(image, "JPEG", quality=90, exif=exif, **options)


def psnr(a, b):
  return -20 * np.log10(np.sqrt(np.mean((a.astype(float) - b) ** 2)) / 255)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(24, 24), (7, 90), (130, 110)])
def test_resampling_is_that_of_pillow_in_floats_up_to_rounding(method, size):
  # Of bytes that do not overflow on the way, in neither order of the two passes.
  image, box = photo(101, 80).point(lambda x: 60 + x // 2), (3.3, 7.7, 90.2, 79.9)
  got = images.resized(np.asarray(image), size, box, method)
  assert got.dtype == np.uint8 and got.shape == (*size, 3)
  bands = (band.convert("F") for band in image.split())
  want = [b.resize(size[::-1], METHODS[method], box=box) for b in bands]
  # Half a level each pass, the first one's times the second's largest gain: 1.25.
  assert np.abs(got - np.stack(want, -1)).max() < 1.2
  # Boxes beyond the edge by rounding alone are cut.
  beyond, whole = (-1e-9, 0.0, 101 + 1e-9, 80.0), (0.0, 0.0, 101.0, 80.0)
  a, b = (images.resized(np.asarray(image), size, x, method) for x in (beyond, whole))
  np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  ("box", "size", "scale"),
  [
    ((0, 0, 101, 79), (40, 40), 1),
    ((0, 0, 80, 80), (40, 40), 2),
    ((0, 0, 80, 79), (40, 40), 1),  # twice the width, but less than twice the height
    ((20, 10, 100, 74), (8, 20), 4),
    ((-300, -300, 700, 700), (20, 20), 8),  # zooms out
  ],
)
def test_only_as_much_is_decoded_as_the_box_asks_for(box, size, scale):
  image, inner = images.picture(jpeg(photo(101, 80))).region(box, size)
  assert image.shape == (80 // scale, -(-101 // scale), 3)
  assert inner == tuple(edge / scale for edge in box)
  other, same = images.picture(encoded(photo(101, 80))).region(box, size)
  assert other.shape == (80, 101, 3) and same == box


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_smaller_decode_shows_the_same_place(turn, scale):
  # Sides that are no multiple of the scale: the last part of a pixel is turned, too.
  data = jpeg(photo(493, 371), turn)
  picture = images.picture(data)
  assert picture.size == ((493, 371) if turn < 5 else (371, 493))
  width, height = picture.size
  box = (0.1 * width, 0.05 * height, 0.97 * width, 0.9 * height)
  size = (int(0.85 * height / scale), int(0.87 * width / scale))
  image, inner = picture.region(box, size)
  assert image.shape == (-(-height // scale), -(-width // scale), 3)
  got = images.resized(image, size, inner, "bilinear")
  whole = images.picture(data).pixels()
  want = images.resized(whole, size, box, "bilinear")
  assert psnr(got, want) > 38


def test_a_crop_of_bytes_is_the_crop_of_the_decoded_image():
  crop = random_resized_crop.Transform(
    size=(48, 40), scale=(0.2, 1.0), filter="bicubic"
  )
  fit = resize.Transform(size=(48, 40), crop=0.9)
  for data in (jpeg(photo(90, 70), 6), encoded(photo(90, 70)), encoded(photo(40, 48))):
    decoded = decode_image.Transform()({"image_bytes": data}, None)
    for transform in (crop, fit, resize.Transform(size=(48, 40))):
      for seed in range(3):
        rngs = (np.random.default_rng(seed) for _ in range(2))
        example = {"image_bytes": data, "id": 3}
        got, want = transform(example, next(rngs)), transform(decoded, next(rngs))
        np.testing.assert_array_equal(got["image"], want["image"])
        assert set(got) == {"image", "id"} and "image_bytes" in example
        named = transform({"image": data}, np.random.default_rng(seed))
        np.testing.assert_array_equal(named["image"], want["image"])


def test_transparency_and_what_lies_outside_have_one_color():
  clear = encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))
  crop = random_resized_crop.Transform(size=(6, 6), scale=(2.0, 2.0), fill=(9, 8, 7))
  image = crop({"image_bytes": clear}, np.random.default_rng(0))["image"]
  np.testing.assert_array_equal(image, np.broadcast_to([9, 8, 7], (6, 6, 3)))


@pytest.mark.parametrize(
  ("data", "reason"),
  [
    (jpeg(photo(64, 64))[:900], "truncated image"),
    (b"", "empty image"),
    (b"<html>not found</html>", "not an image"),
    (None, "not an image"),
    (encoded(Image.new("F", (2, 2)), "TIFF"), "broken image"),
    (encoded(Image.new("1", (12_000, 12_000))), "image too large"),
  ],
)
def test_whoever_decodes_drops_for_the_same_reasons(data, reason):
  for transform in (
    random_resized_crop.Transform(size=(8, 8)),
    resize.Transform(size=(8, 8)),
    decode_image.Transform(),
  ):
    with pytest.raises(Drop, match=reason):
      transform({"image_bytes": data}, np.random.default_rng(0))


def test_a_bomb_is_not_decoded_even_where_a_small_part_would_do():
  data = jpeg(photo(64, 48))
  with pytest.raises(Drop, match="image too large"):
    images.picture(data, max_pixels=64 * 48 - 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("scale", [1, 2])
def test_jpegs_are_what_pillow_makes_of_them(mode, scale):
  """The fast way gives its bytes, and leaves to it what is not as it should be."""
  file = io.BytesIO()
  photo(99, 64).convert(mode).save(file, "JPEG", quality=95)
  data = file.getvalue()
  start = data.index(b"\xff\xda") + 200
  odd = data[:start] + b"\xff\x01" + data[start:]  # libjpeg warns, and goes on
  for bad, sound in ((data, mode != "CMYK"), (odd, False)):
    with Image.open(io.BytesIO(bad)) as image:
      assert (images._sound_jpeg(bad, image, scale) is not None) == sound
      image.draft("RGB", (image.width // scale, image.height // scale))
      want = np.asarray(image.convert("RGB"))
    got = images.picture(bad).pixels(scale)
    np.testing.assert_array_equal(got, want)
    assert got.shape == (64 // scale, -(-99 // scale), 3)


def odd_pictures():
  """Returns name -> encoded bytes of pictures that Pillow does not turn or scale."""
  exif = Image.Exif()
  exif[0x0112] = 6
  deep = np.arange(0, 65536, 65536 // 120, dtype=np.uint16)[:120].reshape(10, 12)
  made = {
    "turned": (photo(12, 10), dict(format="JPEG", exif=exif, quality=95)),
    "turned PNG": (photo(12, 10), dict(format="PNG", exif=exif)),
    "16 bits": (Image.fromarray(deep), dict(format="PNG")),
    "gray": (photo(12, 10).convert("L"), dict(format="PNG")),
    "CMYK": (photo(12, 10).convert("CMYK"), dict(format="JPEG", quality=95)),
    "palette": (photo(12, 10).convert("P"), dict(format="PNG", transparency=3)),
    "transparent": (photo(12, 10).convert("RGBA"), dict(format="PNG")),
  }
  made["transparent"][0].putalpha(100)
  out = {}
  for name, (image, options) in made.items():
    file = io.BytesIO()
    image.save(file, **options)
    out[name] = file.getvalue()
  return out


@pytest.mark.parametrize("name", sorted(odd_pictures()))
def test_an_image_of_pillow_is_what_its_bytes_are(name):
  data = odd_pictures()[name]
  want = images.picture(data, background=(9, 8, 7)).pixels()
  with Image.open(io.BytesIO(data)) as image:
    got = images.array(image)
  assert got.dtype == np.uint8
  got = images.picture(got, background=(9, 8, 7)).pixels()
  np.testing.assert_array_equal(got, want)
  assert want.shape[:2] == ((12, 10) if "turned" in name else (10, 12))


def test_an_image_of_pillow_that_cannot_be_read_drops():
  data = odd_pictures()["gray"]
  cut = Image.open(io.BytesIO(data[: len(data) // 2]))
  with pytest.raises(Drop, match="truncated image"):
    images.array(cut)
  with pytest.raises(Drop, match="broken image"):
    images.array(Image.fromarray(np.ones((3, 3), np.float32)))


def test_a_batch_holds_bytes_and_what_the_device_is_to_do_with_them(config):
  batches = []
  for options in (dict(device=True), {}):
    c = config(threads=0)
    text = tuple(t for t in c.data.transforms if t[0] in ("sample_caption", "tokenize"))
    normalize = ("normalize", dict(std=(0.2, 0.3, 0.4), **options))
    c.data.transforms = (("random_resized_crop", {}), ("flip", {}), normalize, *text)
    batches.append(next(pipeline.train_loader(c, process_index=0, process_count=1)))
  sent, made = batches
  assert sent["image"].dtype == np.uint8 and sent["image_affine"].shape == (12, 2, 3)
  assert set(sent) - set(made) == {"image_affine"}
  # The whole way of a training batch, by the objective's own filter.
  setup = setup_lib.Setup(c, meshes.make({}, jax.devices()[:1]), *[None] * 4)
  image = setup.put(sent)["image"]
  assert image.dtype == np.float32
  np.testing.assert_allclose(image, made["image"], atol=1e-5)


def test_bytes_that_nobody_will_scale_are_an_error(config):
  c = config(threads=0)
  c.data.transforms = (("resize", {}),)
  with pytest.raises(ValueError, match=r"'image' is uint8.* reads float32"):
    pipeline.train_loader(c, process_index=0, process_count=1)


def test_normalize_leaves_bytes_and_says_what_the_device_is_to_do():
  pixels, given = np.asarray(photo(30, 20)), dict(mean=(0.5, 0.4, 0.3), std=(1, 2, 3))
  rng = np.random.default_rng(0)
  out = normalize.Transform(**given, device=True)({"image": pixels}, rng)
  assert out["image"] is pixels
  scale, offset = out["image_affine"]
  assert scale.dtype == np.float32
  host = normalize.Transform(**given)({"image": pixels}, rng)["image"]
  np.testing.assert_array_equal(pixels * scale - offset, host)
