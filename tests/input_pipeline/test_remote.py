"""Sources, recipes and prepared data in a bucket: fsspec's memory stands for s3://."""

import json
import posixpath
import sys

from etils.epath import backend
from fsspec.implementations import memory
import pyarrow as pa
import pyarrow.parquet
import pytest

from input_pipeline.sources import (
  arrayrecord,
  image_folder,
  jsonl,
  parquet,
  webdataset,
)
from tests.input_pipeline import layouts, pairs
from tests.input_pipeline.test_recipes import source as recipe
from tests.input_pipeline.test_webdataset import read_all, shard
from tools import prepare_data


class Bucket(memory.MemoryFileSystem):
  """fsspec's files in memory, under the names that a bucket's have."""

  protocol = "s3"
  store: dict = {}  # noqa: RUF012  fsspec's way to share files between instances
  pseudo_dirs = [""]  # noqa: RUF012
  cachable = False

  @classmethod
  def _strip_protocol(cls, path):
    path = str(path).removeprefix("s3://")
    return super()._strip_protocol(f"/{path.lstrip('/')}")

  def glob(self, path, **kwargs):
    return [p.lstrip("/") for p in super().glob(path, **kwargs)]


@pytest.fixture
def bucket(monkeypatch):
  """Returns a function: folder on this machine -> its copy, s3://bucket/data."""
  registry = sys.modules["fsspec.registry"]._registry
  monkeypatch.setitem(registry, "s3", Bucket)
  backend.fsspec_backend._get_filesystem.cache_clear()
  files = Bucket()

  def copy(folder):
    for path in folder.rglob("*"):
      if path.is_file():
        name = posixpath.join("bucket/data", path.relative_to(folder).as_posix())
        files.pipe(f"s3://{name}", path.read_bytes())
    return "s3://bucket/data"

  yield copy
  Bucket.store.clear()
  Bucket.pseudo_dirs[:] = [""]
  backend.fsspec_backend._get_filesystem.cache_clear()


def test_every_source_that_can_reads_a_bucket(bucket, tmp_path):
  folder = tmp_path / "here"
  rows = []
  for i in range(3):
    image = pairs.pair(i)["image_bytes"]
    rows.append(dict(image=f"photos/{i}.png", caption=f"caption {i}"))
    layouts.write(folder, {f"photos/{i}.png": image, f"photos/{i}.txt": f"caption {i}"})
  layouts.write(folder, {"x.jsonl": "\n".join(map(json.dumps, rows))})
  layouts.write(folder, {"train-0.tar": shard(range(3)), "train-1.tar": shard([4])})
  table = pa.table({"text": ["a", "b"], "n": [1, 2]})
  pyarrow.parquet.write_table(table, folder / "x.parquet")
  there = bucket(folder)
  for make in (
    lambda root: jsonl.Source(paths=f"{root}/*.jsonl"),
    lambda root: image_folder.Source(root=f"{root}/photos"),
    lambda root: webdataset.Source(paths=f"{root}/{{split}}-*.tar"),
    lambda root: parquet.Source(paths=f"{root}/x.parquet"),
  ):
    local, remote = make(str(folder)), make(there)
    assert len(remote) == len(local) > 1
    assert read_all(remote) == read_all(local)
  index = there.replace("s3://", "/") + "/train-0.tar.index"
  assert index in Bucket.store  # written beside the shard, as on a disk


def test_recipes_read_a_bucket(bucket, tmp_path):
  for name in ("tuxpaint", "ktuberling", "cldr_annotations"):
    getattr(layouts, name)(tmp_path / "here")
  there = bucket(tmp_path / "here")
  for name in ("tuxpaint", "ktuberling", "cldr_annotations"):
    local, remote = recipe(name, tmp_path / "here"), recipe(name, there)
    assert read_all(remote) == read_all(local)


def test_prepared_data_go_to_a_bucket_with_the_manifest_last(
  bucket, tmp_path, monkeypatch, capsys
):
  layouts.klettres(tmp_path)
  flags = ["--recipe", "klettres", "--root", str(tmp_path), "--shards", "2"]
  flags += ["--split", "all", "--out", "s3://bucket/out"]
  killed = "s3://bucket/out/all/data.array_record-00002-of-00003"
  Bucket().pipe(killed, b"of a run that was killed")
  written, opened = [], Bucket.open

  def noted(self, path, mode="rb", **options):
    if "w" in mode:
      written.append(path)
    return opened(self, path, mode, **options)

  monkeypatch.setattr(Bucket, "open", noted)
  prepare_data.main([*flags, "--verify"])
  assert "8 of 10 examples in 2 shards" in capsys.readouterr().out
  assert str(written[-1]).endswith("out/all/manifest.json") and len(written) == 4
  check = ["--verify", "--split", "all", "--out", "s3://bucket/out"]
  prepare_data.main(check)
  assert "as its manifest says, 8 examples" in capsys.readouterr().out
  with pytest.raises(SystemExit):
    prepare_data.main(flags)
  assert "is there already" in capsys.readouterr().err
  shards = [name for name in Bucket.store if "array_record" in name]
  Bucket().pipe(shards[0], b"damaged")
  with pytest.raises(SystemExit):
    prepare_data.main(check)
  assert "SHA-256 differs" in capsys.readouterr().err


def test_array_records_are_read_from_disks_and_gs_alone(bucket, tmp_path):
  layouts.write(tmp_path, {"x.array_record": b"x"})
  there = bucket(tmp_path)
  with pytest.raises(ValueError, match="reads local files and gs://, not s3://"):
    arrayrecord.Source(paths=f"{there}/x.array_record*")


def test_a_missing_library_is_named(tmp_path, capsys, monkeypatch):
  monkeypatch.setitem(sys.modules, "s3fs", None)
  backend.fsspec_backend._get_filesystem.cache_clear()
  flags = ["--source", "jsonl", "--option", "paths=s3://bucket/x.jsonl"]
  with pytest.raises(SystemExit):
    prepare_data.main([*flags, "--out", str(tmp_path / "out")])
  assert "s3fs" in capsys.readouterr().err
