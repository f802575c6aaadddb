"""Numbers that cannot work are refused before anything is compiled."""

import pytest

from configs import speech_tuxpaint
from tests.small import one_device, tiny


@pytest.mark.parametrize(
  ("key", "value", "expected"),
  [
    ("log_every", 0, "expected at least 1"),
    ("ema", 1.5, "expected at least 0 and at most 1"),
    ("checkpoint.every", -3, "expected at least 0"),
    ("optimizer.lr", -1.0, "expected at least 0"),
    ("optimizer.lr", float("nan"), "expected at least 0"),
    ("optimizer.b1", 1.0, "expected at least 0 and below 1"),
    ("data.max_dropped", -1.0, "expected at least 0 and at most 1"),
    ("optimizer.clip", float("inf"), "expected at least 0"),
  ],
)
def test_a_number_out_of_range_is_named(key, value, expected):
  config = tiny()
  config.update_from_flattened_dict({key: value})
  with pytest.raises(ValueError, match=rf"config\.{key} = .*{expected}"):
    one_device(config)


def viewed(name, **options):
  """Returns a config whose images are normalised by .4, .2, and have a view."""
  config = tiny()
  options = dict(views=(("image", ("image",), ((name, options),)),))
  config.objective.options.update(options)
  config.data.transforms = (("normalize", dict(mean=(0.4,) * 3, std=(0.2,) * 3)),)
  return config


@pytest.mark.parametrize(
  ("name", "options", "expected"),
  [
    ("augment", {}, r"augment\.mean = 0\.0, but config\.data\.transforms: normalize"),
    ("augment", dict(mean=0.4), r"augment\.std = 1\.0, .* \[0\.2, 0\.2, 0\.2\]"),
    ("lab", dict(std=0.2), r"lab\.mean = 0\.0"),
  ],
)
def test_a_view_told_of_other_pixels_is_refused(name, options, expected):
  with pytest.raises(ValueError, match=expected):
    one_device(viewed(name, **options))


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("augment", dict(mean=0.4, std=(0.2, 0.2, 0.2))),
    ("augment", dict(jitter=0.0, grayscale=0.0)),  # the pixels' range does not matter
    ("lab", dict(mean=(0.4, 0.4, 0.4), std=0.2)),
  ],
)
def test_a_view_told_of_these_pixels_is_not(name, options):
  one_device(viewed(name, **options))


def test_a_view_makes_the_spectrogram_that_evaluation_sees():
  config = speech_tuxpaint.get_config("runlocal")
  one_device(config)
  config.model.modalities.audio.log_mel.mean = 5.0
  with pytest.raises(
    ValueError, match=r"log_mel\.mean = -19\.6, .*audio\.log_mel has 5"
  ):
    one_device(config)
