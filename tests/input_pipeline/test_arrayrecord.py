"""ArrayRecord: all examples in order, damage drops an example, not the run."""

import pickle

import pytest

from input_pipeline.drop import Drop
from input_pipeline.sources import arrayrecord
from tests.input_pipeline.pairs import pair


def test_round_trip(paths):
  source = arrayrecord.Source(paths=paths)
  assert len(source) == 50
  first = source[0]
  assert first["image_bytes"] == pair(0)["image_bytes"]
  assert first["captions"]["fr"] == tuple(pair(0)["captions"]["fr"])
  assert source[25]["id"] == pair(1)["id"]
  assert source.classes == {"kind": ("a", "b", "c")}
  again = pickle.loads(pickle.dumps(source))
  assert again == source
  assert again[49] == source[49]


def test_splits_and_lists(tmp_path):
  for split, n in (("train", 3), ("test", 2)):
    path = str(tmp_path / f"{split}.arrayrecord")
    arrayrecord.write_records(path, map(pair, range(n)))
  pattern = str(tmp_path / "{split}.arrayrecord")
  assert len(arrayrecord.Source(paths=pattern)) == 3
  assert len(arrayrecord.Source(paths=pattern, split="test")) == 2
  both = tuple(str(tmp_path / f"{s}.arrayrecord") for s in ("train", "test"))
  assert len(arrayrecord.Source(paths=both)) == 5
  assert arrayrecord.Source(paths=both).classes == {}
  with pytest.raises(FileNotFoundError, match=r"config\.data\.options\.paths"):
    arrayrecord.Source(paths=pattern, split="valid")


def test_damaged_records_drop(tmp_path):
  from array_record.python import array_record_module

  path = tmp_path / "x.arrayrecord"
  writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1")
  writer.write(b"not of our format")
  writer.close()
  with pytest.raises(Drop, match="corrupt record"):
    arrayrecord.Source(paths=str(path))[0]
  arrayrecord.write_records(str(path), map(pair, range(4)))
  data = bytearray(path.read_bytes())
  at = data.find(b"PNG")
  at = at if at > 0 else len(data) // 8
  data[at : at + 64] = bytes(64)
  path.write_bytes(bytes(data))
  source = arrayrecord.Source(paths=str(path))
  dropped = 0
  for i in range(4):
    try:
      assert source[i] == pair_as_read(i)
    except Drop:
      dropped += 1
  assert dropped >= 1


def pair_as_read(i):
  example = pair(i)
  captions = {k: tuple(v) for k, v in example["captions"].items()}
  return example | {"captions": captions}
