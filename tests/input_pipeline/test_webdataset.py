"""WebDataset shards: any sample by itself, refusals and damage counted by reason."""

import io
import pickle
import tarfile

import numpy as np
import pytest

from input_pipeline import pipeline, tar_index
from input_pipeline.drop import Drop
from input_pipeline.sources import webdataset
from tests.input_pipeline import pairs


def tar(members, form=tarfile.PAX_FORMAT) -> bytes:
  """Returns a tar of (name, data or a TarInfo's changes)."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode="w", format=form) as out:
    for name, data in members:
      info = tarfile.TarInfo(name)
      if isinstance(data, dict):
        for key, value in data.items():
          setattr(info, key, value)
        out.addfile(info)
      else:
        info.size = len(data)
        out.addfile(info, io.BytesIO(data))
  return file.getvalue()


def shard(indices, form=tarfile.PAX_FORMAT, folder="") -> bytes:
  members = []
  for i in indices:
    example = pairs.pair(i)
    members.append((f"{folder}{i:04d}.png", example["image_bytes"]))
    members.append((f"{folder}{i:04d}.txt", example["captions"]["en"][0].encode()))
  return tar(members, form)


def read_all(source):
  """Returns the examples, or the reasons why not, of every index."""
  found = []
  for i in range(len(source)):
    try:
      found.append(source[i])
    except Drop as e:
      found.append(e.reason)
  return found


def opened(tmp_path, data, **options):
  path = tmp_path / "x.tar"
  path.write_bytes(data)
  return webdataset.Source(paths=str(path), **options)


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_every_sample_by_itself(tmp_path, form):
  folder = "é" * 60 + "/"  # a name that takes extended headers
  for s, indices in enumerate((range(3), range(3, 4), range(4, 9))):
    (tmp_path / f"train-{s}.tar").write_bytes(shard(indices, form, folder))
  source = webdataset.Source(paths=str(tmp_path / "{split}-*.tar"))
  assert len(source) == 9
  for i in reversed(range(9)):
    want = pairs.pair(i)
    assert source[i]["image_bytes"] == want["image_bytes"]
    assert source[i]["captions"] == want["captions"]["en"][0]
  with pytest.raises(IndexError):
    source[9]
  again = pickle.loads(pickle.dumps(source))
  assert again == source and again[5] == source[5]
  assert len(webdataset.Source(paths=str(tmp_path / "{split}*"))) == 9  # no indices
  with pytest.raises(FileNotFoundError, match=r"config\.data\.options\.paths"):
    webdataset.Source(paths=str(tmp_path / "{split}-*.tar"), split="test")


def test_the_index_is_made_once_and_again_when_it_does_not_fit(tmp_path, monkeypatch):
  source = opened(tmp_path, shard(range(2)), index=str(tmp_path / "indices"))
  assert len(source) == 2
  (index,) = (tmp_path / "indices").iterdir()
  assert not (tmp_path / "x.tar.index").exists()
  with monkeypatch.context() as patch:
    patch.setattr(tar_index, "build", None)  # would raise
    assert len(opened(tmp_path, shard(range(2)), index=source.index)) == 2
    before = opened(tmp_path, shard(range(2)), index=source.index)
    assert len(before) == 2
    (tmp_path / "x.tar").write_bytes(shard(range(2, 4)))  # of the same length
    assert set(read_all(before)) == {"changed tar"}
  anew = webdataset.Source(paths=str(tmp_path / "x.tar"), index=source.index)
  assert [e["captions"] for e in read_all(anew)] == [
    pairs.pair(i)["captions"]["en"][0] for i in (2, 3)
  ]
  assert len(opened(tmp_path, shard(range(9)), index=source.index)) == 9
  index.write_bytes(index.read_bytes()[:-5])
  assert len(opened(tmp_path, shard(range(9)), index=source.index)) == 9


def test_an_index_that_points_out_of_its_shard_is_not_trusted(tmp_path):
  data = shard(range(2))
  opened(tmp_path, data)[0]
  path = tmp_path / "x.tar"
  sound = tar_index.load(str(path))
  for change in (
    {"offsets": sound.offsets + len(data)},
    {"kinds": sound.kinds + 7},
    {"starts": sound.starts[::-1].copy()},
    {"sizes": sound.sizes.astype(np.float32)},
  ):
    bad = tar_index._written(sound) | change
    (tmp_path / "x.tar.index").write_bytes(tar_index.records.encode(bad))
    assert len(read_all(webdataset.Source(paths=str(path)))) == 2
    np.testing.assert_array_equal(tar_index.load(str(path)).starts, sound.starts)


def test_members_become_what_the_config_asks_for(tmp_path):
  data = tar(
    [
      ("a/1.JPG", b"jpeg"),
      ("a/1.json", b'{"text": ["one", "two"], "meta": {"year": 7}}'),
      ("a/1.cls", b"3\n"),
      ("a/1.pkl", b"never read"),
      ("a/._1.jpg", b"hidden"),
      ("README", b"of no sample"),
      ("b/1.json", b"{"),
      ("c/1.json", b'{"meta": 1}'),
      ("d/1.txt", b"no json"),
    ]
  )
  members = {"json:text": "captions", "json:meta.year": "year"}
  source = opened(tmp_path, data, members={"png;jpg": "image_bytes", **members})
  first = {"image_bytes": b"jpeg", "captions": ("one", "two"), "year": 7}
  assert read_all(source) == [first, "no png;jpg", "no png;jpg", "no png;jpg"]
  source = opened(tmp_path, data, members=members)
  assert read_all(source)[1:] == ["broken JSON", "no text", "no json"]
  assert opened(tmp_path, data, members={"cls": "label_x"})[0] == {"label_x": 3}
  small = opened(tmp_path, data, members={"jpg": "image_bytes"}, max_bytes=3)
  assert read_all(small)[0] == "member too large"
  for unsafe in ("pkl", "x.PyD"):
    with pytest.raises(ValueError, match=r"members asks for .*code"):
      opened(tmp_path, data, members={unsafe: "x"})


def test_what_leads_out_of_a_tar_is_refused(tmp_path):
  link = dict(type=tarfile.SYMTYPE, linkname="/etc/passwd")
  data = tar(
    [
      ("../up.txt", b"x"),
      ("/etc/root.txt", b"x"),
      ("c:/windows.txt", b"x"),
      ("back\\slash.txt", b"x"),
      ("link.txt", link),
      ("hard.txt", link | dict(type=tarfile.LNKTYPE)),
      ("pipe.txt", dict(type=tarfile.FIFOTYPE)),
      ("twice.txt", b"x"),
      ("twice.txt", b"y"),
      ("latin.txt", b"caf\xe9"),
      ("good.txt", b"fine"),
    ]
  )
  unsafe, linked = ["unsafe path in a tar"] * 4, ["link in a tar"] * 2
  rest = ["special file in a tar", "two members of one extension", "text is not UTF-8"]
  found = read_all(opened(tmp_path, data, members={"txt": "captions"}))
  assert found == [*unsafe, *linked, *rest, {"captions": "fine"}]


def test_damage_is_counted_and_the_rest_is_read(tmp_path):
  data = bytearray(shard(range(6)))
  at = data.find(b"0002.png")
  data[at : at + 300] = b"\xff" * 300
  found = read_all(opened(tmp_path, bytes(data)))
  assert found.count("damaged tar") == 1
  assert sum(isinstance(f, dict) for f in found) == 5
  cut = read_all(opened(tmp_path, shard(range(6))[: data.find(b"0004.png") + 700]))
  assert "damaged tar" in cut and sum(isinstance(f, dict) for f in cut) == 4
  joined = read_all(opened(tmp_path, shard(range(3)) + shard(range(2))))
  assert len(joined) == 5 and all(isinstance(f, dict) for f in joined)
  assert opened(tmp_path, b"")._indices[0].extensions == ()
  with pytest.raises(ValueError, match="compressed"):
    len(opened(tmp_path, b"\x1f\x8b" + bytes(100)))


def test_it_feeds_training(tmp_path, tokenizer):
  data = shard(range(20)) + tar([("../up.txt", b"x")])
  (tmp_path / "x.tar").write_bytes(data)
  config = pairs.make_config(tmp_path / "x.tar", tokenizer)
  config.data.source = "webdataset"
  config.data.max_dropped = 0.5
  loader = pipeline.train_loader(config, process_index=0, process_count=1)
  seen = np.concatenate([next(loader)["index"] for _ in range(5)])
  loader.close()
  assert set(seen[:20].tolist()) <= set(range(20))
  assert loader.dropped == {"unsafe path in a tar": loader.dropped.popitem()[1]}
