"""Options of transforms that cannot work are refused before an example is read."""

import pytest

from input_pipeline.transforms import color, flip, normalize, sample_caption


@pytest.mark.parametrize(
  ("module", "options", "expected"),
  [
    (sample_caption, dict(share=1.5), "share = 1.5 must be in"),
    (sample_caption, dict(main=-1.0), "main = -1.0 must be in"),
    (sample_caption, dict(weights=(("en", -1.0),)), "'en' has -1.0"),
    (normalize, dict(std=(0.5, 0.0, 0.5)), "std = .* three numbers"),
    (normalize, dict(mean=(127.5,) * 3), "mean = .* in 0..1"),
    (normalize, dict(mean=0.5), "mean = 0.5 must be three numbers"),
    (flip, dict(p=7.0), "p = 7.0 must be in"),
    (color, dict(brightness=-3.0), "brightness = -3.0 must be at least 0"),
    (color, dict(p=2.0), "p = 2.0 must be in"),
  ],
)
def test_options_out_of_range_are_refused(module, options, expected):
  with pytest.raises(ValueError, match=expected):
    module.Transform(**options)
