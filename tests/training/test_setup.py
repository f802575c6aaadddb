"""Numbers that cannot work are refused before anything is compiled."""

import pytest

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
