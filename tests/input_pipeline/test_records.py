"""Records: what goes in comes out, safetensors reads it, damage is an error."""

import numpy as np
import pytest

from input_pipeline import records

EXAMPLE = {
  "image_bytes": b"\x89PNG\x00\xff",
  "audio": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
  "flags": np.array([True, False]),
  "captions": {"en": ("a cat", "cat"), "ja": ("猫",)},
  "id": 7,
  "score": np.float32(0.5),
  "empty": np.zeros((0, 2), np.int64),
}


def test_round_trip():
  decoded = records.decode(records.encode(EXAMPLE))
  assert decoded.keys() == EXAMPLE.keys()
  for key, value in EXAMPLE.items():
    if isinstance(value, np.ndarray):
      assert decoded[key].dtype == value.dtype
      np.testing.assert_array_equal(decoded[key], value)
    else:
      assert decoded[key] == value


def test_safetensors_reads_it():
  safetensors = pytest.importorskip("safetensors.numpy")
  tensors = safetensors.load(records.encode(EXAMPLE))
  np.testing.assert_array_equal(tensors["audio"], EXAMPLE["audio"])
  assert tensors["image_bytes"].tobytes() == EXAMPLE["image_bytes"]


def test_damage_is_a_value_error():
  record = records.encode(EXAMPLE)
  damaged = [record[:n] for n in (0, 4, 20, len(record) - 1)]
  damaged += [b"\xff" * 64, record[:8] + b"[" + record[9:]]
  for data in damaged:
    with pytest.raises(ValueError, match=r"not a record of input_pipeline\.records"):
      records.decode(data)


@pytest.mark.parametrize("value", [object(), np.array(["text"])])
def test_what_cannot_be_stored_is_refused(value):
  with pytest.raises(ValueError, match=r"JSON|dtype"):
    records.encode({"key": value})
