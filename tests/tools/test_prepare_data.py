"""Any source becomes ArrayRecord: equal bytes, a manifest, and all or nothing."""

import json

import pytest

from input_pipeline import records
from input_pipeline.sources import arrayrecord, image_folder, jsonl
from tests.input_pipeline import layouts, pairs
from tests.input_pipeline.test_webdataset import shard, tar
from tools import prepare_data


@pytest.fixture
def made(tmp_path):
  """Returns a function: flags -> the folder and its manifest, of 11 samples."""
  data = shard(range(9)) + tar(
    [("../x.txt", b"x"), ("y.png", b"junk"), ("y.txt", b"y")]
  )
  (tmp_path / "train.tar").write_bytes(data)
  option = f"paths={tmp_path}/{{split}}.tar"

  def make(*flags):
    base = ["--source", "webdataset", "--option", option, "--shards", "2"]
    prepare_data.main([*base, "--out", str(tmp_path / "out"), *flags])
    folder = tmp_path / "out" / "train"
    return folder, json.loads((folder / "manifest.json").read_text())

  return make


def test_images_and_captions_come_out_as_they_went_in(made, tmp_path, capsys):
  folder, manifest = made("--verify", "--decode")
  assert "9 of 11 examples in 2 shards" in capsys.readouterr().out
  source = arrayrecord.Source(paths=str(tmp_path / "out/{split}/data.array_record*"))
  got = sorted(source[i]["image_bytes"] for i in range(len(source)))
  assert got == sorted(pairs.pair(i)["image_bytes"] for i in range(9))
  assert source[1]["image_bytes"] == pairs.pair(2)["image_bytes"]  # dealt in turn
  assert source[1]["captions"] == pairs.pair(2)["captions"]["en"][0]
  assert (manifest["read"], manifest["examples"], manifest["rejected"]) == (11, 9, 2)
  assert manifest["rejects"] == {
    "not an image": dict(count=1, first=[10]),
    "unsafe path in a tar": dict(count=1, first=[9]),
  }
  assert manifest["command"].startswith("python -m tools.prepare_data --source webd")
  assert {p.name for p in folder.iterdir()} == {"manifest.json", *manifest["shards"]}
  with pytest.raises(SystemExit):
    made()
  assert "is there already" in capsys.readouterr().err


def test_verify_tells_a_flipped_bit_and_a_lost_shard(made, tmp_path, capsys):
  folder, manifest = made()
  check = ["--verify", "--out", str(tmp_path / "out")]
  prepare_data.main(check)
  assert "as its manifest says, 10 examples" in capsys.readouterr().out
  file = folder / min(manifest["shards"])
  data = bytearray(file.read_bytes())
  data[50] ^= 1
  file.write_bytes(data)
  complains(check, "SHA-256 differs", capsys)
  file.unlink()
  complains(check, "shards that are missing", capsys)
  (folder / "manifest.json").unlink()
  complains(check, "to its end", capsys)


def complains(flags, message, capsys):
  with pytest.raises(SystemExit) as e:
    prepare_data.main(flags)
  assert e.value.code == 2
  assert message in capsys.readouterr().err


def test_verify_compares_with_the_source(made, tmp_path):
  folder, _ = made()
  examples = [pairs.pair(i) for i in range(10)]
  with pytest.raises(ValueError, match="record 0 differs from example 0"):
    prepare_data.verify(folder, iter(examples))


def test_a_killed_run_leaves_nothing_that_counts(made, tmp_path, monkeypatch):
  encode, calls = records.encode, []

  def killed(example):
    calls.append(example)
    if len(calls) > 12:
      raise KeyboardInterrupt
    return encode(example)

  with monkeypatch.context() as patch:
    patch.setattr(records, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
      made()
  assert (tmp_path / "out" / "train.part").exists()
  pattern = str(tmp_path / "out/{split}/data.array_record*")
  with pytest.raises(FileNotFoundError):
    arrayrecord.Source(paths=pattern)
  made("--verify")
  assert not (tmp_path / "out" / "train.part").exists()
  assert len(arrayrecord.Source(paths=pattern)) == 10


@pytest.mark.parametrize(
  ("flags", "complaint"),
  [
    (["--source", "jsonl", "--limit", "-3"], "--limit -3 is not at least 1"),
    (["--source", "webdatset"], "did you mean webdataset"),
    (["--source", "webdataset"], "paths"),
    (["--source", "jsonl", "--option", "path=x"], "unknown key --option.path"),
    (["--source", "jsonl", "--option", "paths"], "is not KEY=VALUE"),
    (["--source", "jsonl", "--option", "paths=none"], "no file matches"),
    ([], "names what to read"),
    (["--source", "jsonl", "--recipe", "tuxpaint"], "names what to read"),
    (["--recipe", "tuxpain"], "did you mean tuxpaint"),
    (["--recipe", "tuxpaint", "--root", "nowhere"], "apt-get download tuxpaint"),
    (["--split", ".."], "a plain name"),
  ],
)
def test_wrong_flags_end_with_their_message(flags, complaint, tmp_path, capsys):
  complains([*flags, "--out", str(tmp_path / "out")], complaint, capsys)
  assert not (tmp_path / "out").exists()


def test_other_sources(tmp_path):
  for i in range(3):
    (tmp_path / f"{i}.png").write_bytes(pairs.pair(i)["image_bytes"])
    (tmp_path / f"{i}.txt").write_text(f"caption {i}")
  rows = [dict(image=f"{i}.png", caption={"en": [f"n {i}"]}) for i in range(3)]
  rows.append(dict(image="0.png", caption="\ud800"))
  (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
  paths = str(tmp_path / "x.jsonl")
  for name, option, source in (
    ("image_folder", f"root={tmp_path}", image_folder.Source(root=str(tmp_path))),
    ("jsonl", f"paths={paths}", jsonl.Source(paths=paths)),
  ):
    out = tmp_path / f"out_{name}"
    flags = ["--option", option, "--out", str(out), "--shards", "1", "--verify"]
    prepare_data.main(["--source", name, *flags])
    written = arrayrecord.Source(paths=str(out / "train/data.array_record*"))
    assert [written[i] for i in range(3)] == [source[i] for i in range(3)]
    assert len(written) == 3


def test_a_recipe_names_its_licence_and_authors(tmp_path, capsys):
  layouts.tuxpaint(tmp_path)
  out = tmp_path / "out"
  flags = ["--recipe", "tuxpaint", "--root", str(tmp_path), "--option", "letters=False"]
  prepare_data.main([*flags, "--split", "all", "--shards", "2", "--out", str(out)])
  manifest = json.loads((out / "all/manifest.json").read_text())
  assert (manifest["licence"], manifest["package"]) == (
    "GPL-2",
    "tuxpaint-stamps-default=2022.06.04-1",
  )
  assert "Bill Kendrick" in manifest["attribution"]
  assert manifest["options"] == {"letters": False, "root": str(tmp_path)}
  assert manifest["rejects"] == {"no captions": {"count": 1, "first": [4]}}
  written = arrayrecord.Source(paths=str(out / "all/data.array_record*"))
  hens = [e for e in map(written.__getitem__, range(len(written))) if "hen" in e["key"]]
  assert sorted(e["speech_fr"] for e in hens) == [b"fr", b"fr"]
  assert written.classes["top"] == ("animals", "food", "symbols", "things")
  shown = capsys.readouterr().err
  assert "tuxpaint all: 100%" in shown and "examples/s" in shown  # the progress bar
