"""Images are resized, cut and scaled as the peers do it, by what their files say."""

from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest

from input_pipeline import pipeline
from input_pipeline.transforms import resize
from model.interop import describe, pixels
from tests.model.interop import models, peers

CLIP, SIGLIP = describe.CLIP_PIXELS, describe.SIGLIP_PIXELS
SIZES = ((31, 20), (20, 33), (64, 50), (24, 24), (9, 13))


def pictures():
  rng = np.random.default_rng(0)
  return [Image.fromarray(rng.integers(0, 255, (*s, 3), np.uint8)) for s in SIZES]


def ours(steps, side, pictures):
  config = models.clip()
  config.model.modalities.image.size = (side, side, 3)
  config.data.eval_transforms = steps
  out = []
  for picture in pictures:
    example = {"image": np.asarray(picture)}
    for _, t in pipeline.transforms(config, "eval_transforms"):
      example = t(example, np.random.default_rng(0))
    out.append(example["image"])
  return out


@pytest.mark.parametrize("crop", [1.0, 0.875, 0.0])
def test_torchvision(crop):
  torch, open_clip = peers.library("open_clip")
  import torchvision.transforms as tv

  del torch, open_clip
  shape = round(16 / crop) if crop else (16, 16)
  with peers.quiet():
    bicubic = tv.InterpolationMode.BICUBIC
    there = tv.Compose([tv.Resize(shape, bicubic), tv.CenterCrop(16)])
    want = [np.asarray(there(p)) for p in pictures()]
  here = resize.Transform(size=(16, 16), crop=crop, as_in="torchvision")
  for picture, w in zip(pictures(), want):
    got = here({"image": np.asarray(picture)}, None)["image"]
    np.testing.assert_array_equal(got, w)


def test_open_clip():
  _, open_clip = peers.library("open_clip")
  for mode in ("shortest", "squash"):
    said = dict(mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6], resize_mode=mode)
    with peers.quiet():
      there = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(size=16, **said), is_train=False
      )
      want = [there(p).numpy().transpose(1, 2, 0) for p in pictures()]
    steps = pixels.steps(CLIP, "open_clip", {}, {"preprocess_cfg": said}, 16)
    for a, b in zip(ours(steps, 16, pictures()), want):
      np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", ["CLIP", "Siglip", "Bit"])
def test_transformers(name):
  _, transformers = peers.library("transformers")
  sizes = dict(
    CLIP=dict(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
    Siglip=dict(size={"height": 16, "width": 16}),
    Bit=dict(size={"shortest_edge": 20}, crop_size={"height": 16, "width": 16}),
  )
  with peers.quiet():
    there = getattr(transformers, f"{name}ImageProcessorPil")(**sizes[name])
    want = np.asarray(there(pictures(), return_tensors="np")["pixel_values"])
  said = there.to_dict()
  for file in ({pixels.FILES[0]: said}, {pixels.FILES[1]: {"image_processor": said}}):
    steps = pixels.steps(SIGLIP, "hf", file, {}, 16)
    for a, b in zip(ours(steps, 16, pictures()), want):
      np.testing.assert_allclose(a, b.transpose(1, 2, 0), atol=1e-5)


def test_what_is_said_and_what_is_not():
  def options(default=CLIP, library="hf", given=None, **said):
    made = pixels.steps(default, library, {pixels.FILES[0]: said}, given or {}, 8)
    return made[1][1] | {"mean": made[2][1]["mean"]}

  assert options() == dict(crop=1.0, as_in="transformers", mean=CLIP["mean"])
  assert options(SIGLIP)["crop"] == 0.0
  assert options(do_center_crop=False)["crop"] == 0.0
  half = options(do_center_crop=True, size={"shortest_edge": 16}, crop_size=8)
  assert half["crop"] == 0.5
  assert options(resample=2, image_mean=[1, 2, 3])["filter"] == "bilinear"
  assert options(library="big_vision") == dict(crop=1.0, mean=CLIP["mean"])
  with pytest.raises(ValueError, match="resample = 1, interpolation = None, expected"):
    options(resample=1)
  with pytest.raises(ValueError, match="resize_mode = 'longest', expected"):
    options(given={"preprocess_cfg": {"resize_mode": "longest"}})


def test_there_and_back():
  config = models.clip()
  config.data.eval_transforms = (
    ("resize", dict(crop=0.8, filter="bilinear", as_in="transformers")),
    ("normalize", dict(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))),
  )
  for library in ("hf", "open_clip"):
    files = pixels.written(config, library, {})
    given = files.get("open_clip_config.json", {})
    steps = dict(pixels.steps(SIGLIP, library, files, given, 8))
    assert steps["normalize"] == config.data.eval_transforms[1][1]
    assert steps["resize"]["filter"] == "bilinear"
    assert steps["resize"]["crop"] == (0.8 if library == "hf" else 1.0)
  config.data.eval_transforms = ()
  assert pixels.written(ConfigDict(config), "hf", {}) == {}


def test_resize_refuses_what_it_has_not():
  with pytest.raises(ValueError, match="as_in = 'jax', expected one of"):
    resize.Transform(size=(8, 8), as_in="jax")
  with pytest.raises(ValueError, match="filter = 'cubic', expected one of"):
    resize.Transform(size=(8, 8), filter="cubic")
