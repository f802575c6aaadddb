"""Layouts that people have on disk, in small synthetic copies."""

import json
import pickle

import pytest

from input_pipeline.sources import class_folders, clip_benchmark, karpathy
from tests.input_pipeline import pairs
from tests.input_pipeline.test_webdataset import read_all, tar


def same_after_pickling(source):
  again = pickle.loads(pickle.dumps(source))
  assert again == source and read_all(again) == read_all(source)
  with pytest.raises(IndexError):
    source[len(source)]


class TestKarpathy:
  @pytest.fixture
  def coco(self, tmp_path):
    (tmp_path / "val2014").mkdir()
    images = []
    for i, split in enumerate(("train", "restval", "test", "test", "val")):
      name = f"COCO_val2014_{i:012d}.jpg"
      (tmp_path / "val2014" / name).write_bytes(b"image %d" % i)
      texts = [{"tokens": ["a"], "raw": f"{c} of {i}", "imgid": i} for c in "abc"]
      entry = dict(filepath="val2014", filename=name, split=split, sentences=texts)
      images.append(entry | dict(imgid=10 + i, cocoid=99, sentids=[0, 1, 2]))
    images[3]["sentences"] = images[3]["sentences"][:1]
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps(dict(images=images, dataset="coco")))
    return path

  def test_images_with_their_captions(self, coco):
    source = karpathy.Source(path=str(coco), split="test")
    assert read_all(source) == [
      dict(image_bytes=b"image 2", captions=("a of 2", "b of 2", "c of 2"), id=12),
      dict(image_bytes=b"image 3", captions=("a of 3",), id=13),
    ]
    same_after_pickling(source)

  def test_a_row_for_each_caption(self, coco):
    source = karpathy.Source(path=str(coco), split="test", per="caption", captions=2)
    found = [(r["captions"], r["id"]) for r in read_all(source)]
    assert found == [(("a of 2",), 12), (("b of 2",), 12), (("a of 3",), 13)]

  @pytest.mark.parametrize(("rest", "ids"), [(True, [10, 11]), (False, [10])])
  def test_train_is_what_papers_train_on(self, coco, rest, ids):
    source = karpathy.Source(path=str(coco), restval=rest)
    assert [r["id"] for r in read_all(source)] == ids

  def test_flickr_has_no_folders_and_faults_have_reasons(self, tmp_path):
    (tmp_path / "1.jpg").write_bytes(b"one")
    texts = [{"raw": "x"}]
    entries = [
      dict(filename="1.jpg", split="test", sentences=texts),
      dict(filename="1.jpg", split="test", sentences="x"),
      dict(filename="../1.jpg", split="test", sentences=texts),
      dict(filename="2.jpg", split="test", sentences=texts),
      dict(filename=7, split="test", sentences=texts),
      dict(filename="1.jpg", split=["test"]),
      "no entry",
    ]
    path = tmp_path / "dataset_flickr30k.json"
    path.write_text(json.dumps(dict(images=entries)))
    source = karpathy.Source(path=str(path), split="test", per="caption")
    assert read_all(source) == [
      dict(image_bytes=b"one", captions=("x",), id=0),
      "no captions",
      "path outside the root",
      "missing file",
      "no path",
    ]

  def test_errors(self, coco, tmp_path):
    with pytest.raises(ValueError, match=r"'dev' has no image; there are \['restval'"):
      len(karpathy.Source(path=str(coco), split="dev"))
    with pytest.raises(ValueError, match="per = 'text'"):
      karpathy.Source(path=str(coco), per="text")
    with pytest.raises(FileNotFoundError, match="missing file"):
      len(karpathy.Source(path=str(tmp_path / "none.json")))
    for text, message in (("[1]", "no list 'images'"), ("{", "broken JSON")):
      coco.write_text(text)
      with pytest.raises(ValueError, match=message):
        len(karpathy.Source(path=str(coco)))


class TestClassFolders:
  @pytest.fixture
  def imagenet(self, tmp_path):
    for name in ("train/n02/a.JPEG", "train/n01/b.JPEG", "train/n03/c.jpg"):
      (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
      (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "val/n03").mkdir(parents=True)
    (tmp_path / "val/n03/d.JPEG").write_bytes(b"d")
    (tmp_path / "val/loose.jpg").write_bytes(b"of no class")
    (tmp_path / "val/n03/d.txt").write_bytes(b"no image")
    lines = "n01 tench, Tinca tinca\nn02 goldfish\nn03 great white shark, man-eater\n"
    (tmp_path / "names.txt").write_text(lines)
    return tmp_path

  def test_labels_are_folders_of_all_splits(self, imagenet):
    root, names = f"{imagenet}/{{split}}", str(imagenet / "names.txt")
    val = class_folders.Source(root=root, split="val", names=names)
    assert val.classes == {"class": ("tench", "goldfish", "great white shark")}
    want = dict(image_bytes=b"d", captions=("great white shark",), label_class=2)
    assert read_all(val) == [want]
    same_after_pickling(val)
    train = class_folders.Source(root=root, label="kind")
    assert [r["label_kind"] for r in read_all(train)] == [0, 1, 2]
    assert train.classes == {"kind": ("n01", "n02", "n03")}
    alone = class_folders.Source(root=f"{imagenet}/val")
    assert alone.classes == {"class": ("n03",)}

  def test_only_folders_that_show_images_are_classes(self, imagenet):
    def read(split):
      source = class_folders.Source(root=f"{imagenet}/{{split}}", split=split)
      return source.classes, read_all(source)

    before = read("train"), read("val")
    for folder in ("train/empty", "annotations/Bird_xml", "val/.trash", ".git/refs"):
      (imagenet / folder).mkdir(parents=True)
    (imagenet / "train/links").symlink_to(imagenet / "train/n01")  # as of images
    for name in (
      "train/empty/readme.txt",
      "annotations/Bird_xml/1.xml",
      "val/.trash/1.jpg",
      "val/n03/.ipynb_checkpoints/1-checkpoint.jpg",
      "val/n03/._d.JPEG",
      "train/empty/.1.jpg",
      ".git/refs/1.jpg",
    ):
      (imagenet / name).parent.mkdir(exist_ok=True)
      (imagenet / name).write_bytes(b"x")
    assert (read("train"), read("val")) == before
    (imagenet / "train/empty/sub").mkdir()
    (imagenet / "train/empty/sub/1.png").write_bytes(b"x")
    for split in ("train", "val"):
      assert read(split)[0] == {"class": ("empty", "n01", "n02", "n03")}

  def test_names_in_the_order_of_the_folders(self, imagenet):
    (imagenet / "names.txt").write_text("red fish\n\nblue fish\nshark\n")
    source = class_folders.Source(
      root=f"{imagenet}/{{split}}", names=str(imagenet / "names.txt")
    )
    assert source.classes["class"] == ("red fish", "blue fish", "shark")

  def test_errors(self, imagenet):
    root, names = f"{imagenet}/{{split}}", imagenet / "names.txt"
    names.write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="names 2 classes, but there are 3 folders"):
      _ = class_folders.Source(root=root, names=str(names)).classes
    names.write_text("\n")
    with pytest.raises(ValueError, match="is empty: expected the name of a class"):
      _ = class_folders.Source(root=root, names=str(names)).classes
    with pytest.raises(ValueError, match="holds no folders"):
      _ = class_folders.Source(root=f"{imagenet}/val/n03").classes
    with pytest.raises(FileNotFoundError, match="no folder"):
      len(class_folders.Source(root=root, split="test"))


class TestClipBenchmark:
  def classified(self, root, labels=(1, 0, 7)):
    members = []
    for i, label in enumerate(labels):
      members.append((f"s{i:07d}.png", pairs.pair(i)["image_bytes"]))
      members.append((f"s{i:07d}.cls", str(label).encode()))
    (root / "test").mkdir()
    (root / "test" / "0.tar").write_bytes(tar(members))
    (root / "test" / "nshards.txt").write_text("1")
    (root / "classnames.txt").write_text("airplane\nred car\n")
    return clip_benchmark.Source(root=str(root))

  def test_classes(self, tmp_path):
    source = self.classified(tmp_path)
    assert source.classes == {"class": ("airplane", "red car")}
    first = dict(image_bytes=pairs.pair(0)["image_bytes"], captions=("red car",))
    found = read_all(source)
    assert found[0] == first | dict(label_class=1)
    assert found[1]["label_class"] == 0 and found[2] == "no such class"
    same_after_pickling(source)
    with pytest.raises(ValueError, match="have classes, as its classnames"):
      clip_benchmark.Source(root=str(tmp_path), captions=5)
    (tmp_path / "classnames.txt").write_text("")
    with pytest.raises(ValueError, match="is empty"):
      clip_benchmark.Source(root=str(tmp_path))

  def test_captions(self, tmp_path):
    members = []
    for i, text in enumerate((b"a\nb\nc\n", b"d")):
      members += [(f"{i}.jpg", b"image %d" % i), (f"{i}.txt", text)]
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "0.tar").write_bytes(tar(members))
    whole = clip_benchmark.Source(root=str(tmp_path))
    assert whole.classes == {}
    assert [r["captions"] for r in read_all(whole)] == [("a", "b", "c"), ("d",)]
    rows = read_all(clip_benchmark.Source(root=str(tmp_path), captions=2))
    assert [r if isinstance(r, str) else (r["captions"], r["id"]) for r in rows] == [
      (("a",), 0),
      (("b",), 0),
      "too few captions",
      "too few captions",
    ]
    with pytest.raises(FileNotFoundError, match="no file matches"):
      clip_benchmark.Source(root=str(tmp_path), split="train")
