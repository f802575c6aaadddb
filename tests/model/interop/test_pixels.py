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


SQUARE = {"height": 16, "width": 16}
SHORT = dict(size={"shortest_edge": 16}, crop_size=SQUARE)
# Processor, and what its file says.
SAID = (
  ("CLIP", dict(size=SQUARE, crop_size=SQUARE)),
  ("CLIP", dict(size={"shortest_edge": 20}, crop_size=SQUARE)),
  ("CLIP", dict(size=20, crop_size=16)),
  ("CLIP", dict(size=SQUARE, do_center_crop=False)),
  ("CLIP", SHORT | dict(rescale_factor=1 / 127.5)),
  ("CLIP", SHORT | dict(do_normalize=False)),
  ("CLIP", SHORT | dict(do_rescale=False, image_mean=[99.0] * 3, image_std=[50.0] * 3)),
  ("CLIP", SHORT | dict(image_mean=0.5, image_std=0.5)),
  ("Siglip", dict(size=SQUARE, rescale_factor=1 / 127.5, do_normalize=False)),
  ("Bit", dict(size={"shortest_edge": 20}, crop_size=SQUARE)),
)


@pytest.mark.parametrize("name, said", SAID)
def test_what_transformers_does_where_its_file_says_so_or_nothing(name, said):
  _, transformers = peers.library("transformers")
  with peers.quiet():
    there = getattr(transformers, f"{name}ImageProcessorPil")(**said)
    want = np.asarray(there(pictures(), return_tensors="np")["pixel_values"])
  default = dict(CLIP=SIGLIP, Siglip=CLIP, Bit=SIGLIP)[name]  # the file wins
  said = said | {"image_processor_type": f"{name}ImageProcessorFast"}
  steps = pixels.steps(default, "hf", {pixels.FILES[0]: said}, {}, 16)
  for a, b in zip(ours(steps, 16, pictures()), want):
    np.testing.assert_allclose(a, b.transpose(1, 2, 0), atol=1e-5)


def named(said, default=CLIP, side=8, patch=4, library="hf", given=None):
  files = {pixels.FILES[0]: said}
  return dict(pixels.steps(default, library, files, given or {}, side, patch))


def test_numbers_and_lists():
  got = named(dict(image_mean=0.5, image_std=[1, 2, 4], rescale_factor=1 / 127.5))
  assert got["normalize"]["mean"] == pytest.approx((0.25,) * 3)
  assert got["normalize"]["std"] == pytest.approx((0.5, 1, 2))
  assert named({"do_normalize": False})["normalize"] == dict(
    mean=(0,) * 3, std=(1,) * 3
  )
  got = named(dict(size=[8, 8], crop_size=[8, 8]))
  assert got["resize"]["crop"] == 0
  bit = named({"feature_extractor_type": "BitFeatureExtractor"}, default=SIGLIP)
  assert (bit["resize"]["crop"], bit["normalize"]["mean"]) == (1, CLIP["mean"])


@pytest.mark.parametrize(
  "said, why",
  [
    (dict(size="32"), "size = '32', expected"),
    (dict(size=0), "size = 0, expected"),
    (dict(size={"longest_edge": 8}), "size = {'longest_edge': 8}, expected"),
    (dict(size={"shortest_edge": 8, "longest_edge": 9}), "size = .*, expected"),
    (dict(size={"height": 20, "width": 20}, crop_size=8), "size = .*, expected 8 x 8"),
    (dict(size={"height": 8, "width": 9}), r"size = .* of one n: mend the file"),
    (dict(size={"shortest_edge": 8}, do_center_crop=False), "size = .*, expected"),
    (dict(crop_size={"shortest_edge": 8}), "crop_size = {'shortest_edge': 8}, expec"),
    (dict(crop_size={"height": 8, "width": 9}), "crop_size = .* of one n"),
    (dict(crop_size="8"), "crop_size = '8', expected"),
    (dict(do_resize=False), "do_resize = False, expected True"),
    (dict(do_pad=True), "do_pad = True, expected False"),
    (dict(rescale_factor=0), "rescale_factor = 0, expected a number above 0"),
    (dict(image_mean=[0.5]), r"image_mean = \[0.5\], expected three numbers: mend"),
    (dict(image_mean="0.5"), "image_mean = '0.5', expected three numbers: mend"),
    (dict(image_std=[1, 0, 1]), "image_std = .*, expected three numbers above 0"),
    (dict(image_processor=[1]), r"image_processor = \[1\], expected an object"),
  ],
)
def test_what_is_refused(said, why):
  with pytest.raises(ValueError, match=f"^preprocessor_config.json: {why}"):
    named(said)


def test_open_clip_says_shortest_by_saying_nothing():
  got = named({}, SIGLIP, library="open_clip", given={"preprocess_cfg": {"size": 8}})
  assert got["resize"]["crop"] == 1 and got["normalize"]["mean"] == CLIP["mean"]
  got = named({}, SIGLIP, library="open_clip")  # a file without a config
  assert got["resize"]["crop"] == 0 and got["normalize"]["mean"] == SIGLIP["mean"]


def test_what_patches_do_not_tile_is_made_and_left_out():
  picture = pictures()[0]
  whole = np.asarray(picture.resize((11, 11), Image.Resampling.BICUBIC))
  said = {"size": {"height": 11, "width": 11}}
  steps = named(said, SIGLIP)
  assert steps["resize"] == dict(crop=0, as_in="transformers", rest=3)
  got = resize.Transform(size=(8, 8), **steps["resize"])
  out = got({"image": np.asarray(picture)}, None)["image"]
  np.testing.assert_array_equal(out, whole[:8, :8])
  out = got({"image": whole}, None)["image"]
  np.testing.assert_array_equal(out, whole[:8, :8])
  middle = resize.Transform(size=(8, 8), crop=1.0, rest=3)({"image": whole}, None)
  np.testing.assert_array_equal(middle["image"], whole[:8, :8])
  # By config.json, where nothing else says it.
  for given in (
    {"vision_config": {"image_size": 11}},
    {"image_size": [11, 11]},
    {"model_cfg": {"vision_cfg": {"image_size": 11}}},
  ):
    assert named({}, SIGLIP, given=given)["resize"]["rest"] == 3
  assert "rest" not in named({}, SIGLIP, given={"image_size": 12})["resize"]


def test_a_size_of_other_patches_is_said(monkeypatch):
  said = []
  # Not by caplog: other tests of the process may have made absl's logging silent.
  monkeypatch.setattr(pixels.logging, "warning", lambda text, *a: said.append(text % a))
  steps = named({"size": {"height": 12, "width": 12}}, SIGLIP)
  assert "rest" not in steps["resize"]
  assert "makes images of 12 pixels, and the model was trained at 8" in said[0]
  assert "--size 12" in said[0]


@pytest.mark.parametrize("crop", [0.0, 1.0, 0.8])
def test_the_rest_comes_back(crop):
  config = models.siglip()
  options = dict(crop=crop, as_in="transformers", rest=3)
  normal = dict(mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0))
  config.data.eval_transforms = (("resize", options), ("normalize", normal))
  files = pixels.written(config, "hf", {"vision_config": {"image_size": 8}})
  assert files["config.json"] == {"vision_config": {"image_size": 11}}
  steps = dict(pixels.steps(CLIP, "hf", files, {}, 8, 4))
  assert steps["resize"] == options | {"crop": pytest.approx(crop, abs=0.02)}
  card = {"model_cfg": {"vision_cfg": {"image_size": 8, "width": 8}}}
  files = pixels.written(config, "open_clip", card)["open_clip_config.json"]
  assert files["model_cfg"]["vision_cfg"] == {"image_size": 11, "width": 8}
  assert dict(pixels.steps(CLIP, "open_clip", {}, files, 8, 4))["resize"]["rest"] == 3
  pixels.tiled(config)
  del options["rest"]
  assert config.data.eval_transforms == (("resize", options), ("normalize", normal))


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
  with pytest.raises(ValueError, match="rest = -1, expected at least 0"):
    resize.Transform(size=(8, 8), rest=-1)
