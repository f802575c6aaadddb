"""JSON-lines, image folders, Parquet, memory: examples, and a reason for the rest."""

import collections
from concurrent import futures
import json
import os
import pickle
import sys
import threading

import numpy as np
import pytest

from input_pipeline import untrusted
from input_pipeline.drop import Drop
from input_pipeline.sources import image_folder, in_memory, jsonl, parquet
from tests.input_pipeline.test_webdataset import read_all


@pytest.fixture
def photos(tmp_path):
  """A folder with images 0 to 2, and a file beside it that is none of its business."""
  folder = tmp_path / "photos"
  (folder / "deep").mkdir(parents=True)
  for i in range(3):
    (folder / "deep" / f"{i}.jpg").write_bytes(b"image %d" % i)
  (tmp_path / "secret.jpg").write_bytes(b"secret")
  (folder / "out.jpg").symlink_to(tmp_path / "secret.jpg")
  os.mkfifo(folder / "pipe.jpg")
  return folder


OUTSIDE = ("../secret.jpg", "/etc/passwd", "deep/../../secret.jpg", "c:\\x", "out.jpg")


def same_after_pickling(source):
  again = pickle.loads(pickle.dumps(source))
  assert again == source and hash(again) == hash(source)
  assert read_all(again) == read_all(source)
  with pytest.raises(IndexError):
    source[len(source)]


class TestJsonl:
  def write(self, photos, lines, **options):
    path = photos / "x.jsonl"
    path.write_bytes(b"\n".join(lines))
    return jsonl.Source(paths=str(path), **options)

  def test_lines_and_fields(self, photos):
    rows = [
      dict(image=f"deep/{i}.jpg", caption=f"n {i}", meta=dict(alt=["a", "b"], year=i))
      for i in range(3)
    ]
    lines = [b"", *(json.dumps(r).encode() for r in rows), b"\r", b""]
    source = self.write(photos, lines, fields={"meta.year": "year"})
    want = [
      {"image_bytes": b"image %d" % i, "captions": f"n {i}", "year": i}
      for i in range(3)
    ]
    assert read_all(source) == want
    same_after_pickling(source)
    both = self.write(photos, lines, captions=("caption", "no", "meta.alt"))
    assert both[1]["captions"] == ("n 1", "a", "b")
    two = jsonl.Source(paths=(str(photos / "x.jsonl"),) * 2)
    assert len(two) == 6 and two[5] == two[2]

  def test_each_fault_has_its_reason(self, photos):
    lines = [json.dumps(dict(image=i, caption="x")).encode() for i in OUTSIDE]
    faults = {
      b'{"image": "deep/9.jpg"}': "missing file",
      b'{"image": "deep"}': "missing file",
      b'{"image": "pipe.jpg"}': "missing file",
      b'{"image": "\\ud800"}': "path is not UTF-8",
      b'{"image": "' + b"x" * 9999 + b'"}': "missing file",
      b'{"image": 7}': "no path",
      b'{"image": "deep/0.jpg"}': "no caption",
      b'{"caption": "x"}': "no image",
      b"[1, 2]": "no image",
      b'{"image": "caf\xe9"}': "text is not UTF-8",
      b'{"image": ': "broken JSON",
      b"[" * 100_000: "broken JSON",
      b"9" * 5000: "broken JSON",
    }
    source = self.write(photos, [*lines, *faults])
    assert read_all(source) == ["path outside the root"] * 5 + list(faults.values())
    good = b'{"image": "deep/0.jpg", "caption": "x"}'
    assert read_all(self.write(photos, [good], max_bytes=3)) == ["file too large"]
    with pytest.raises(ValueError, match="compressed"):
      len(self.write(photos, [b"\x1f\x8b and so on"]))


class TestImageFolder:
  def test_files_beside_the_images(self, photos):
    (photos / "deep" / "0.txt").write_text("one\n\ntwo\n")
    (photos / "deep" / "1.json").write_text('{"caption": {"en": ["three"]}}')
    source = image_folder.Source(root=str(photos))
    want = [
      {"image_bytes": b"image 0", "captions": ("one", "two")},
      {"image_bytes": b"image 1", "captions": {"en": ("three",)}},
      "no caption file",
      "path outside the root",
    ]
    assert read_all(source) == want
    same_after_pickling(source)
    with pytest.raises(FileNotFoundError, match="no folder"):
      len(image_folder.Source(root=str(photos / "none")))

  @pytest.mark.parametrize(("name", "comma"), [("t.csv", b","), ("{split}.tsv", b"\t")])
  def test_a_table(self, photos, name, comma):
    rows = [
      b"image,caption,other",
      b'deep/0.jpg,"one,\ttwo",x',
      b"deep/1.jpg,three,x",
      b"deep/0.jpg,again,x",
      b"too,few",
      b"deep/2.jpg,caf\xe9,x",
      b"deep/9.jpg," + b"x" * 200_000 + b",x",
      b"../secret.jpg,x,x",
      b"",
    ]
    table = name.replace("{split}", "train")
    (photos / table).write_bytes(b"\n".join(r.replace(b",", comma) for r in rows))
    source = image_folder.Source(root=str(photos), table=name)
    first = {b",": "one,\ttwo", b"\t": "one\t\ttwo"}[comma]
    assert read_all(source) == [
      {"image_bytes": b"image 0", "captions": (first, "again")},
      {"image_bytes": b"image 1", "captions": ("three",)},
      "broken row (separators in a text need quotes)",
      "text is not UTF-8",
      "broken row (separators in a text need quotes)",
      "path outside the root",
    ]
    same_after_pickling(source)
    with pytest.raises(ValueError, match="no column"):
      len(image_folder.Source(root=str(photos), table=table, image="path"))
    with pytest.raises(FileNotFoundError, match="outside the root"):
      len(image_folder.Source(root=str(photos), table="../x.csv"))

  def test_every_broken_row_counts(self, photos):
    """A set of which most has commas in its texts is to stop, not to shrink."""
    rows = ["image,caption", *(f"deep/{i % 3}.jpg,a, b {i}" for i in range(90))]
    rows.append("deep/1.jpg,one")
    rows.append(f'deep/2.jpg,"{"never closed" * 20_000}')  # over csv's limit
    rows[-1] += "\n" * 7
    (photos / "t.csv").write_text("\n".join([*rows, "deep/0.jpg,two"]))
    source = image_folder.Source(root=str(photos), table="t.csv")
    got = collections.Counter(x if isinstance(x, str) else "" for x in read_all(source))
    broken = got["broken row (separators in a text need quotes)"]
    assert broken == 91 and got.total() == 93
    assert source[90] == {"image_bytes": b"image 1", "captions": ("one",)}


class TestInMemory:
  def test_columns(self):
    images = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
    in_memory.put(
      "my train", image=images, captions=["a", ["b", "c"]], classes={"x": ["y"]}
    )
    source = in_memory.Source(name="my {split}")
    assert len(source) == 2 and source.classes == {"x": ("y",)}
    np.testing.assert_array_equal(source[1]["image"], images[1])
    assert source[1]["captions"] == ("b", "c")
    again = pickle.loads(pickle.dumps(source))
    assert again == source and again[0]["captions"] == "a"
    with pytest.raises(IndexError):
      source[2]
    with pytest.raises(ValueError, match="did you mean my train"):
      in_memory.Source(name="my tain")
    with pytest.raises(ValueError, match="one length"):
      in_memory.put("x", a=[1], b=[])


class TestParquet:
  def table(self, photos):
    pa = pytest.importorskip("pyarrow")
    image = [
      {"bytes": b"png", "path": "x.png"},
      {"bytes": None, "path": "deep/1.jpg"},
      {"bytes": None, "path": "../secret.jpg"},
      {"bytes": b"png", "path": None},
    ]
    columns = {
      "image": pa.array(image),
      "text": pa.array(["a", "b", "c", None]),
      "kind": pa.array([0, 1, 0, 1]),
      "all": pa.array([["x", "y"], [], ["z"], ["w"]]),
    }
    info = {"info": {"features": {"kind": {"names": ["cat", "dog"]}}}}
    metadata = {"huggingface": json.dumps(info)}
    return pa.table(columns).replace_schema_metadata(metadata)

  COLUMNS = (("image", "image_bytes"), ("text", "captions"), ("kind", "label_kind"))
  WANT = (
    {"image_bytes": b"png", "captions": "a", "label_kind": 0},
    {"image_bytes": b"image 1", "captions": "b", "label_kind": 1},
    "path outside the root",
    "no text",
  )

  def check(self, **options):
    source = parquet.Source(columns=self.COLUMNS, **options)
    assert read_all(source) == list(self.WANT)
    assert source.classes == {"kind": ("cat", "dog")}
    same_after_pickling(source)
    return source

  def test_files(self, photos):
    table = self.table(photos)
    path = str(photos / "train-0.parquet")
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, path, row_group_size=3)
    self.check(paths=str(photos / "{split}-*.parquet"))
    everything = parquet.Source(paths=path, root=str(photos))[0]
    assert everything["all"] == ("x", "y") and len(everything) == 4
    with pytest.raises(ValueError, match=r"columns.*no \['caption'\]"):
      parquet.Source(paths=path, columns={"caption": "captions"})
    data = bytearray((photos / "train-0.parquet").read_bytes())
    data[4:60] = bytes(56)  # the first pages, not the table of contents
    (photos / "train-0.parquet").write_bytes(bytes(data))
    assert "unreadable row" in read_all(parquet.Source(paths=path))
    (photos / "train-0.parquet").write_bytes(b"PAR1" + bytes(40))
    with pytest.raises(ValueError, match="neither Parquet nor"):
      parquet.Source(paths=path)

  def test_one_thread_at_a_time_reads_a_file(self, photos, monkeypatch):
    import pyarrow.parquet

    path = str(photos / "x.parquet")
    pyarrow.parquet.write_table(self.table(photos), path, row_group_size=1)
    reading, twice = threading.Lock(), threading.Event()
    read = pyarrow.parquet.ParquetFile.read_row_group

    def watched(file, *args, **kwargs):
      if not reading.acquire(blocking=False):
        return twice.set()
      twice.wait(0.1)  # for another reader, should one come
      reading.release()
      return read(file, *args, **kwargs)

    monkeypatch.setattr(pyarrow.parquet.ParquetFile, "read_row_group", watched)
    source = parquet.Source(paths=path, columns={"text": "captions"})
    with futures.ThreadPoolExecutor(3) as pool:
      got = list(pool.map(source.__getitem__, range(3)))
    assert [x["captions"] for x in got] == ["a", "b", "c"]
    assert not twice.is_set()

  def test_a_folder_of_datasets(self, photos):
    table = self.table(photos)
    import pyarrow as pa

    folder = photos / "set" / "train"
    folder.mkdir(parents=True)
    with pa.ipc.new_stream(str(folder / "data-0.arrow"), table.schema) as writer:
      writer.write_table(table, max_chunksize=3)
    (photos / "set" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    state = {"_data_files": [{"filename": "data-0.arrow"}], "_indices_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    self.check(paths=str(photos / "set"), root=str(photos))
    with pytest.raises(FileNotFoundError, match=r"no state\.json"):
      parquet.Source(paths=str(photos / "set"), split="test")
    data = (folder / "data-0.arrow").read_bytes()
    start = data.find(b"abc")  # the texts of the first three rows
    data = data[:start] + b"a\xffc" + data[start + 3 :]
    (folder / "data-0.arrow").write_bytes(data)
    source = parquet.Source(paths=str(photos / "set"), columns={"text": "captions"})
    want = [{"captions": "a"}, "unreadable row", {"captions": "c"}, "no text"]
    assert read_all(source) == want
    state["_data_files"] = [{"filename": "../../../secret.jpg"}]
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match="outside the root"):
      parquet.Source(paths=str(photos / "set"))

  def test_without_pyarrow(self, photos, monkeypatch):
    (photos / "x.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ModuleNotFoundError, match="pip install"):
      parquet.Source(paths=str(photos / "x.parquet"))


def test_an_unreadable_file_drops(photos, monkeypatch):
  path = untrusted.inside(str(photos), "deep/0.jpg")
  assert untrusted.read(path) == b"image 0"

  def fail(*args, **kwargs):
    raise OSError("disk")

  monkeypatch.setattr(type(path), "open", fail)
  with pytest.raises(Drop, match="unreadable file"):
    untrusted.read(path)


def test_which_files_a_path_names(tmp_path, monkeypatch):
  for name in ("a/x[1].jsonl", "a/x1.jsonl", "b/x1.jsonl", "b/{split}.jsonl"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{}")
  monkeypatch.chdir(tmp_path)
  for path, want in {
    "a/x[1].jsonl": ["a/x[1].jsonl"],  # it is there, and hence no glob
    "b/x[1].jsonl": ["b/x1.jsonl"],
    "./a/x1.jsonl": ["a/x1.jsonl"],
    "*/x1.jsonl": ["a/x1.jsonl", "b/x1.jsonl"],
    "a/x*.jsonl": ["a/x1.jsonl", "a/x[1].jsonl"],
    "{split}": ["a"],
  }.items():
    assert untrusted.matches(path, "a") == want, path
  with pytest.raises(ValueError, match=r"'\*\*/x1.jsonl' has '\*\*', .* write a '\*'"):
    untrusted.matches("**/x1.jsonl", "a")
  for path, stars in {
    "p-{00000..00001}.tar": "p-*.tar",
    "{a,b}/{split}-{0..9}.tar": "*/train-*.tar",
  }.items():
    with pytest.raises(FileNotFoundError) as e:
      untrusted.matches(path, "train")
    assert str(e.value).endswith(
      f": braces are not expanded; write {stars!r}, or a list of paths"
    )
  with pytest.raises(FileNotFoundError, match=r"no file matches 'a/y\*'$"):
    untrusted.matches("a/y*", "a")
