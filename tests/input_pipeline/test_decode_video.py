"""Clips: the right frames, cut alike, with masks; of animations and of arrays."""

import io

import numpy as np
from PIL import Image
import pytest

from configs import base
from input_pipeline import pipeline
from input_pipeline.drop import Drop
from input_pipeline.transforms import decode_video


def frames(count, height=8, width=12):
  """Frame i is of grey 10 * i, but for a white corner."""
  video = np.full((count, height, width, 3), 0, np.uint8)
  video += (10 * np.arange(count, dtype=np.uint8))[:, None, None, None]
  video[:, :2, :2] = 255
  return video


def npy(array, **options):
  file = io.BytesIO()
  np.save(file, array, **options)
  return file.getvalue()


def animation(video, kind):
  images = [Image.fromarray(f) for f in video]
  file = io.BytesIO()
  more = dict(lossless=True) if kind == "WEBP" else {}
  images[0].save(file, kind, save_all=True, append_images=images[1:], **more)
  return file.getvalue()


def clip(value, seed=0, **options):
  given = dict(frames=4, size=(8, 12), clip="uniform", mean=(0,) * 3, std=(1,) * 3)
  made = decode_video.Transform(**(given | options))
  out = made({"video_bytes": value, "id": 1}, np.random.default_rng(seed))
  assert out.keys() == {"id", "video", "video_mask"}
  assert out["video"].dtype == np.float32
  return out["video"], out["video_mask"]


def shown(video):
  """Which frames of `frames` a clip shows."""
  return np.rint(video[:, -1, -1, 0] * 25.5).astype(int).tolist()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "npy", "array"])
def test_every_form_gives_the_same_clip(kind):
  video = frames(12)
  value = npy(video) if kind == "npy" else video
  if kind in ("GIF", "WEBP", "PNG"):
    value = animation(video, kind)
  got, mask = clip(value)
  assert shown(got) == [1, 4, 7, 10] and mask.all()
  np.testing.assert_allclose(got, video[[1, 4, 7, 10]] / 255, atol=0.01)


def test_random_clips_are_neighbours_a_stride_apart_and_cover_the_video():
  starts = set()
  for seed in range(60):
    got, _ = clip(frames(12), seed, clip="random", stride=2)
    first, *rest = shown(got)
    assert rest == [first + 2, first + 4, first + 6]
    starts.add(first)
  assert starts == set(range(6))


@pytest.mark.parametrize("how", ["uniform", "random"])
def test_short_videos_are_padded_and_masked(how):
  got, mask = clip(frames(3), clip=how, stride=2 if how == "random" else 1)
  n = 3 if how == "uniform" else 2
  assert mask.tolist() == [True] * n + [False] * (4 - n)
  assert not got[n:].any()


def test_a_still_picture_is_one_frame():
  got, mask = clip(animation(frames(1), "PNG"))
  assert mask.sum() == 1 and shown(got)[0] == 0


def test_boxes_are_of_the_sizes_shape_the_same_in_every_frame_and_mirrored_together():
  video = frames(4, 16, 12)
  got, _ = clip(video, size=(6, 6))  # the middle square: the corner is outside
  assert got[0].max() < 0.2
  got, _ = clip(video, size=(8, 6), flip=1.0)  # the whole; the corner is at the right
  # Halved with antialiasing, the white two of the three pixels that a corner sees.
  assert got[0, 0, -1, 0] == pytest.approx((6 / 7) ** 2, abs=0.01)
  assert got[0, 0, 0, 0] == 0
  grey, seen = 10 * np.arange(4), set()
  for seed in range(30):
    got, _ = clip(video, seed, size=(8, 6), scale=(0.3, 0.6))
    white = (got[:, 0, 0, 0] * 255 - grey) / (255 - grey)  # share of the corner
    assert np.ptp(white) < 0.01
    seen.add(bool(white[0] > 0))
  assert seen == {True, False}


def test_pixels_are_standardised():
  got, _ = clip(frames(4), mean=(0.5,) * 3, std=(0.25,) * 3)
  np.testing.assert_allclose(got[0, 0, 0], 2.0)


@pytest.mark.parametrize(
  ("value", "reason"),
  [
    (b"", "empty video"),
    (frames(0), "empty video"),
    (b"RIFF....AVI ", "not a video"),
    (7, "not a video"),
    (frames(2)[..., :2], "not a video"),
    (npy(np.zeros((2, 4, 4, 3), np.float32)), "not a video"),
    (npy(np.array([{"a": 1}], object), allow_pickle=True), "not a video"),
    (npy(frames(2))[:-1], "truncated video"),
    (npy(frames(2)).replace(b"(2, 8,", b"(2, -8,"), "not a video"),
    (animation(frames(12), "GIF")[:400], "broken video"),
    (animation(np.zeros((2, 40, 40, 3), np.uint8), "PNG")[:90], "not a video"),
  ],
)
def test_unusable(value, reason):
  with pytest.raises(Drop, match=f"^{reason}$"):
    clip(value)


def apng_with_a_picture_beside(video):
  """An APNG for whose frames a white picture stands where it cannot be played."""
  file, frames = io.BytesIO(), [Image.fromarray(f) for f in video]
  white = Image.new("RGB", frames[0].size, "white")
  options = dict(save_all=True, default_image=True)
  white.save(file, "PNG", append_images=frames, **options)
  return file.getvalue()


def test_the_picture_that_stands_for_an_apng_is_no_frame():
  video = frames(6)
  for options in (dict(), dict(frames=6), dict(clip="random", frames=6)):
    got, mask = clip(apng_with_a_picture_beside(video), **options)
    want, _ = clip(animation(video, "PNG"), **options)
    np.testing.assert_array_equal(got, want)
    assert mask.all()
  got, mask = clip(apng_with_a_picture_beside(video[:1]))
  assert mask.sum() == 1 and shown(got)[0] == 0


def test_only_what_has_to_be_decoded_can_be_too_large():
  video, last = frames(12), 12 * 8 * 12
  given = dict(frames=12, clip="random")
  clip(animation(video, "GIF"), max_pixels=last, **given)
  # The picture beside the frames is decoded on the way to them.
  for data in (animation(video, "GIF"), apng_with_a_picture_beside(video[:11])):
    with pytest.raises(Drop, match=r"^video too large$"):
      clip(data, max_pixels=last - 1, **given)
  for value in (video, npy(video)):
    for seed in range(5):
      assert clip(value, seed, clip="random", max_pixels=1)[1].all()


def test_a_header_that_claims_more_than_there_is_allocates_nothing():
  huge = npy(frames(1)).replace(b"(1, 8, 12, 3), }  ", b"(999999999,8,12,3)}")
  with pytest.raises(Drop, match="truncated video"):
    clip(huge)


def test_sizes_come_from_the_model():
  c = base.get_config()
  c.model.modalities.video = base.modality(size=(6, 8, 10, 3), patch=(2, 4, 5))
  c.data.transforms = (("decode_video", dict(stride=3)),)
  ((_, made),) = pipeline.transforms(c, "transforms")
  assert (made.frames, made.size, made.stride) == (6, (8, 10), 3)
  for options in (dict(clip="first"), dict(stride=0), dict(scale=(0.5, 2.0))):
    c.data.transforms = (("decode_video", options),)
    with pytest.raises(ValueError, match=rf"decode_video.{next(iter(options))}|stride"):
      pipeline.transforms(c, "transforms")
