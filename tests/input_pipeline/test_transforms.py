"""Transforms: pixels and captions come out right, unusable ones drop with a reason."""

import io
import pickle
import zlib

import numpy as np
from PIL import Image
import pytest

from input_pipeline import tokenizer as tokenizers
from input_pipeline.drop import Drop
from input_pipeline.transforms import (
  color,
  decode_image,
  flip,
  normalize,
  outline,
  random_resized_crop,
  resize,
  sample_caption,
  tokenize,
)
from tests.input_pipeline.pairs import png


def encoded(image: Image.Image, kind="PNG", **options) -> bytes:
  file = io.BytesIO()
  image.save(file, kind, **options)
  return file.getvalue()


def rng(seed=0):
  return np.random.default_rng(seed)


def decode(data, **options):
  transform = decode_image.Transform(**options)
  return transform({"image_bytes": data}, rng())["image"]


NOISE = np.random.default_rng(0).integers(0, 255, (40, 30, 3)).astype(np.uint8)


class TestDecode:
  def test_rgb_is_exact(self):
    image = decode(png(NOISE))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, NOISE)

  @pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "L", "CMYK", "I;16"])
  def test_modes(self, mode):
    if mode == "I;16":
      image = Image.fromarray(np.full((4, 4), 65535, np.uint16))
    elif mode in ("RGBA", "LA"):
      image = Image.new(mode, (4, 4), (0,) * len(mode))  # transparent black
    elif mode == "P":
      image = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).quantize(4)
    else:
      image = Image.new("RGB", (4, 4), "white").convert(mode)
    kind = "TIFF" if mode == "CMYK" else "PNG"
    np.testing.assert_array_equal(decode(encoded(image, kind)), 255)

  def test_transparency_shows_the_background(self):
    half = Image.new("RGBA", (2, 2), (0, 0, 0, 128))
    image = decode(encoded(half), background=(255, 0, 0))
    np.testing.assert_array_equal(image[0, 0], [127, 0, 0])
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    image = decode(encoded(palette, transparency=1), background=(1, 2, 3))
    np.testing.assert_array_equal(image[0, 0], [1, 2, 3])

  @pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
  def test_arrays(self, shape):
    transform = decode_image.Transform()
    out = transform({"image": np.full(shape, 255, np.uint8)}, rng())["image"]
    assert out.shape == (5, 4, 3)
    assert out.min() == 255

  @pytest.mark.parametrize(
    ("data", "reason"),
    [
      (png(NOISE)[:700], "truncated image"),
      (encoded(Image.fromarray(NOISE), "JPEG")[:500], "truncated image"),
      (b"", "empty image"),
      (b"<html>not found</html>", "not an image"),
      (None, "not an image"),
      (np.zeros((0, 4, 3), np.uint8), "empty image"),
      (np.zeros((2, 2, 7), np.uint8), "not an image"),
      (encoded(Image.new("F", (2, 2)), "TIFF"), "broken image"),
    ],
  )
  def test_unusable(self, data, reason):
    with pytest.raises(Drop, match=reason):
      decode(data)

  def test_bombs_are_refused_before_they_are_decoded(self):
    bomb = encoded(Image.new("1", (12_000, 12_000)))  # over Pillow's own warning
    assert len(bomb) < 100_000
    for options in ({}, {"max_pixels": 2**40}):
      with pytest.raises(Drop, match="image too large"):
        decode(bomb, **options)
    with pytest.raises(Drop, match="image too large"):
      decode(png(NOISE), max_pixels=100)

  @pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
  def test_animations_show_their_first_frame(self, kind):
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    np.testing.assert_allclose(decode(data)[0, 0], [255, 0, 0], atol=4)

  @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
  @pytest.mark.parametrize("turn", range(1, 9))
  def test_photos_stand_upright(self, kind, turn):
    image = Image.new("RGB", (32, 16), "white")
    image.paste("black", (0, 0, 16, 8))  # as stored, at the top left
    exif = Image.Exif()
    exif[0x0112] = turn
    got = decode(encoded(image, kind, exif=exif))
    # EXIF 2.3, 4.6.4 A: which sides of the scene the stored row 0 and column 0 are.
    sides = {
      1: "top left", 2: "top right", 3: "bottom right", 4: "bottom left",
      5: "left top", 6: "right top", 7: "right bottom", 8: "left bottom",
    }[turn]  # fmt: skip
    assert got.shape == ((16, 32, 3) if turn < 5 else (32, 16, 3))
    h, w = got.shape[:2]
    y = h // 4 if "top" in sides else 3 * h // 4
    x = w // 4 if "left" in sides else 3 * w // 4
    assert got[y, x].max() < 40
    assert got[h - 1 - y, x].min() > 215 and got[y, w - 1 - x].min() > 215

  @pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # which says that it goes on
  def test_exif_of_garbage_is_survived(self):
    image = Image.fromarray(NOISE)
    want = decode(encoded(image, "JPEG"))
    for tail in (b"", b"\xff" * 40, b"MM\0*\0\0\0\x08\xff\xff", b"II*\0" + bytes(4)):
      data = encoded(image, "JPEG", exif=b"Exif\0\0" + tail)
      np.testing.assert_array_equal(decode(data), want)
    exif = Image.Exif()
    exif[0x0112] = 77
    np.testing.assert_array_equal(decode(encoded(image, "JPEG", exif=exif)), want)

  def test_programs_are_not_run(self):
    eps = encoded(Image.fromarray(NOISE), "EPS")
    with pytest.raises(Drop, match="not an image"):
      decode(eps)

  def test_flipped_bits_drop_or_decode_but_never_crash(self):
    data = encoded(Image.fromarray(NOISE), "PNG")
    for seed in range(60):
      damaged = bytearray(data)
      for at in rng(seed).integers(8, len(data), size=4):
        damaged[at] ^= 0xFF
      try:
        assert decode(bytes(damaged)).shape[-1] == 3
      except Drop as e:
        assert e.reason

  def test_reduced_size_jpeg_keeps_the_shorter_side(self):
    big = encoded(Image.fromarray(NOISE).resize((800, 600)), "JPEG")
    assert decode(big, min_side=100).shape == (150, 200, 3)
    assert decode(big, size=(64, 48)).shape == (64, 48, 3)

  def test_cache_is_bounded_shared_and_not_pickled(self):
    transform = decode_image.Transform(cache=1)
    first = transform({"image_bytes": png(NOISE)}, rng())["image"]
    again = transform({"image_bytes": png(NOISE)}, rng())["image"]
    assert again is first
    with pytest.raises(ValueError, match="read-only"):
      first[0] = 0
    transform({"image_bytes": png(NOISE[:9])}, rng())
    assert len(transform._cached) == 1
    assert not pickle.loads(pickle.dumps(transform))._cached
    assert transform == decode_image.Transform(cache=1)


class TestPixels:
  def test_crop_of_everything_is_a_resize(self):
    crop = random_resized_crop.Transform(size=(16, 12), scale=(1, 1), ratio=(1, 1))
    plain = resize.Transform(size=(16, 12), filter="bilinear")
    a, b = (t({"image": NOISE}, rng())["image"] for t in (crop, plain))
    assert a.shape == (16, 12, 3)
    np.testing.assert_array_equal(a, b)

  def test_crop_stays_inside_unless_it_zooms_out(self):
    image = np.zeros((30, 20, 3), np.uint8)
    inside = random_resized_crop.Transform(
      size=(8, 8), scale=(0.2, 1.0), ratio=(0.3, 3)
    )
    outside = random_resized_crop.Transform(size=(8, 8), scale=(2.0, 2.0))
    for seed in range(30):
      assert inside({"image": image}, rng(seed))["image"].max() == 0
      assert outside({"image": image}, rng(seed))["image"].max() == 255

  @pytest.mark.parametrize("size", [(48, 48), (8, 8)])  # one resampling, or two
  def test_rotation_turns_around_the_centre(self, size):
    image = np.full((48, 48, 3), 255, np.uint8)
    image[:, 22:26] = 0  # an upright line
    transform = random_resized_crop.Transform(
      size=size, scale=(1, 1), ratio=(1, 1), rotate=90.0
    )

    class Ninety:
      def random(self, n):
        return np.array([1.0, 0, 0, 0, 0][:n])

    turned = transform({"image": image}, Ninety())["image"]
    middle = size[0] // 2
    assert turned[middle, 1:-1].max() < 255 > turned[middle - 1, 1:-1].max()
    assert turned[1, 1:-1].min() > 250

  def test_resize_crops_the_middle(self):
    image = np.zeros((20, 40, 3), np.uint8)
    image[:, 10:30] = 255
    cropped = resize.Transform(size=(10, 10), crop=0.9)({"image": image}, rng())
    assert cropped["image"].min() == 255

  def test_flip(self):
    always, never = flip.Transform(p=1.0), flip.Transform(p=0.0)
    np.testing.assert_array_equal(
      always({"image": NOISE}, rng())["image"], NOISE[:, ::-1]
    )
    assert always({"image": NOISE}, rng())["image"].flags.c_contiguous
    assert never({"image": NOISE}, rng())["image"] is NOISE

  def test_color_of_strength_zero_changes_nothing(self):
    none = color.Transform(brightness=0, contrast=0, saturation=0, hue=0)
    out = none({"image": NOISE}, rng())["image"]
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, NOISE, atol=1e-2)

  def test_color_changes_what_it_says(self):
    x = NOISE.astype(np.float32)
    luma = x @ np.array([0.299, 0.587, 0.114], np.float32)
    zero = dict(brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0)

    def out(seed, **options):
      return color.Transform(**zero | options)({"image": NOISE}, rng(seed))["image"]

    gray = out(0, grayscale=1.0)
    np.testing.assert_allclose(gray, np.repeat(luma[..., None], 3, -1), atol=0.1)
    darker = [out(s, brightness=0.5) for s in range(8)]
    means = np.array([d.mean() / x.mean() for d in darker])
    assert means.min() < 0.8 < 1.1 < means.max()
    for contrast in (out(s, contrast=0.3) for s in range(4)):
      assert abs(contrast.mean() - x.mean()) < 3
      assert abs(contrast.std() - x.std()) > 0.5
    hue = out(1, hue=0.1)
    flat = np.full((2, 2, 3), 100, np.uint8)
    unchanged = color.Transform(**zero | {"hue": 0.1})({"image": flat}, rng(1))["image"]
    np.testing.assert_allclose(unchanged, 100, atol=0.5)
    assert np.abs(hue - x).mean() > 2

  def test_normalize(self):
    transform = normalize.Transform(mean=(0.5, 0.4, 0.3), std=(0.5, 0.2, 0.1))
    out = transform({"image": NOISE}, rng())["image"]
    want = (NOISE / 255 - [0.5, 0.4, 0.3]) / [0.5, 0.2, 0.1]
    assert out.dtype == np.float32
    np.testing.assert_allclose(out, want, atol=1e-5)


CAPTIONS = {"en": ("red heart", "heart"), "fr": ("cœur rouge",), "ja": ("  ",)}


class TestCaptions:
  def sample(self, captions=CAPTIONS, n=400, **options):
    transform = sample_caption.Transform(**options)
    return [
      transform({"captions": captions}, rng(seed))["caption"] for seed in range(n)
    ]

  def test_evaluation_takes_the_first_english_one(self):
    assert set(self.sample(train=False)) == {"red heart"}
    assert set(self.sample({"fr": ("œuf",)}, train=False)) == {"œuf"}

  def test_shares(self):
    got = self.sample(share=0.8, main=0.5)
    english = sum(c != "cœur rouge" for c in got) / len(got)
    assert 0.7 < english < 0.95
    assert 0.5 < got.count("red heart") / (english * len(got)) < 0.9
    assert set(self.sample(weights=(("fr", 0.0), ("ja", 0.0)))) == set(CAPTIONS["en"])

  def test_forms_of_captions(self):
    assert set(self.sample(b"caf\xc3\xa9")) == {"café"}
    assert set(self.sample(["a", b"b", ""])) == {"a", "b"}
    assert set(self.sample("A Cat", lowercase=True)) == {"a cat"}

  @pytest.mark.parametrize("captions", ["", b" ", (), {}, {"en": ("", "\n")}])
  @pytest.mark.parametrize("train", [True, False])
  def test_empty_ones_drop(self, captions, train):
    with pytest.raises(Drop, match="empty caption"):
      self.sample(captions, train=train)

  def test_what_is_not_utf8_does_not_count(self):
    assert set(self.sample([b"caf\xe9", b"b", "\ud800 c", 7, None])) == {"b"}
    for captions in (b"caf\xe9", ["\ud800"], {"en": (), "fr": b"\xff"}):
      with pytest.raises(Drop, match="caption is not UTF-8"):
        self.sample(captions)
    for captions in (None, 7, {"en": None}, [None]):
      with pytest.raises(Drop, match="empty caption"):
        self.sample(captions)

  def test_long_ones_are_cut_at_a_space(self):
    assert set(self.sample("one two three", max_chars=8)) == {"one two"}
    assert set(self.sample("one two three", max_chars=7)) == {"one two"}
    assert set(self.sample("  " * 9 + "onetwothree", max_chars=4)) == {"onet"}
    assert len(self.sample("a " * 50_000, n=1)[0]) == 8191
    assert len(self.sample("a" * 50_000, n=1, max_chars=0)[0]) == 50_000

  def test_word_dropout_keeps_a_word(self):
    got = self.sample("one two three", word_dropout=0.7)
    assert {len(c.split()) for c in got} == {1, 2, 3}
    assert "one three" in got

  def test_what_only_unwanted_languages_say_drops(self):
    for captions, options in (
      ({"fr": ("a",)}, dict(weights=(("fr", 0.0),))),
      ({"en": ("a",), "de": (" ",)}, dict(weights=(("en", 0.0),))),
      ({"en": ("a",)}, dict(share=0.0)),
    ):
      with pytest.raises(Drop, match="no caption of a wanted language"):
        self.sample(captions, **options)


def test_tokenize_pads_cuts_and_masks(tokenizer):
  def run(text, **options):
    transform = tokenize.Transform(tokenizer=tokenizer, vocab=300, **options)
    out = transform({"caption": text}, rng(3))
    return out["text"], out["text_mask"]

  ids, mask = run("red cat", length=12)
  assert ids.dtype == np.int32
  assert mask.dtype == bool
  end = int(mask.sum())
  assert ids[end - 1] == tokenizers.END
  assert not ids[end:].any()
  np.testing.assert_array_equal(mask, ids != 0)
  short, mask = run("red cat tree dog blue", length=4)
  assert mask.all()
  assert short[-1] == tokenizers.END
  assert run("red", length=4, eos=False)[0][-1] != tokenizers.END
  begun, _ = run("red", length=4, eos=False, begin=(7,))
  assert begun[0] == 7 and tokenizers.END not in begun
  with pytest.raises(Drop, match="empty caption"):
    run(" ", length=4)
  with pytest.raises(Drop, match="caption is not UTF-8"):
    run("\ud800", length=4)
  sampled = {
    tuple(
      tokenize.Transform(tokenizer=tokenizer, vocab=300, length=12, nbest=5)(
        {"caption": "tallest birdhouse"}, rng(s)
      )["text"]
    )
    for s in range(20)
  }
  assert len(sampled) > 1


def test_letter_ngrams_stand_behind_the_ids(tokenizer):
  transform = tokenize.Transform(
    tokenizer=tokenizer, vocab=300, length=6, ngrams=8, ngram_rows=1000
  )
  out = transform({"caption": "Red cat"}, rng())
  assert out["text"].shape == (14,) and out["text_mask"].shape == (6,)
  grams = ["<re", "red", "ed>", "<red", "red>", "<red>", "<red>", "<ca"]
  expected = [1 + zlib.crc32(g.encode()) % 999 for g in grams]
  np.testing.assert_array_equal(out["text"][6:], expected)
  short = transform({"caption": "a"}, rng())["text"][6:]
  assert (short != 0).sum() == 2, "<a> as an n-gram and as the word"


def test_outline_inks_edges_and_nothing_else():
  image = np.full((6, 6, 3), 255, np.uint8)
  image[:, 3:] = (255, 0, 0)
  run = outline.Transform(p=1.0, strength=(0.5, 0.5), gain=4.0)
  out = run({"image": image}, rng())["image"]
  assert out.dtype == np.float32
  np.testing.assert_allclose(out[:, 2], 127.5)  # the last white column
  np.testing.assert_array_equal(np.delete(out, 2, 1), np.delete(image, 2, 1))
  same = outline.Transform(p=0.0)({"image": image}, rng())["image"]
  np.testing.assert_array_equal(same, image)
  with pytest.raises(ValueError, match="strength"):
    outline.Transform(strength=(0.5, 1.5))
