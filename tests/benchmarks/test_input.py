"""benchmarks.input with tiny pictures; the peers' half where they are installed."""

import gc
import importlib.util
import json
import os
import pathlib
import re
import tarfile
import time
import types
import warnings

import jax
import numpy as np
import pytest

from benchmarks import input as bench
from benchmarks import input_table, jpeg_quality, photos, turns
from benchmarks.contenders import input_ours
from input_pipeline import images, pipeline
from input_pipeline.transforms import flip

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = dict(size=40, vocab=284, length=8, batch=4, scale=(0.5, 1.0), threads=0)
HAS_PEERS = all(map(bench._installed, ("torch", "torchvision", "webdataset")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("photos")
  about = photos.write(folder, 8, 64, 90, TINY["vocab"])
  assert about["examples"] == 8 and about["longer_side"] == 64
  return folder


def settings(folder, contender):
  return TINY | dict(folder=str(folder)) | dict(contender)


def test_the_pictures_weigh_what_photographs_of_their_size_do():
  (pair,) = photos.pairs(1, 500, 90)
  assert 60_000 < len(pair["image_bytes"]) < 100_000
  assert 5 <= len(pair["captions"].split()) <= 15
  (same,) = photos.pairs(1, 500, 90)
  assert same == pair


def test_every_format_holds_the_same_pairs(folder):
  lines = (folder / "train.jsonl").read_text().splitlines()
  members = {}
  for path in folder.glob("train-*.tar"):
    with tarfile.open(path) as tar:
      members |= {m.name: tar.extractfile(m).read() for m in tar}
  for i, pair in enumerate(photos.pairs(8, 64, 90)):
    line = json.loads(lines[i])
    assert (folder / line["image"]).read_bytes() == pair["image_bytes"]
    assert members[f"{i:06d}.jpg"] == pair["image_bytes"]
    assert members[f"{i:06d}.txt"].decode() == line["caption"] == pair["captions"]


@pytest.mark.parametrize("measure", [None, *bench.MEASURES])
def test_without_a_measure_the_same_pictures_come_out(folder, measure, monkeypatch):
  # What a measure patches comes back after the test.
  for where, name in (
    (images, "resized"),
    (images, "_sound_jpeg"),
    (flip.Transform, "__call__"),
  ):
    monkeypatch.setattr(where, name, getattr(where, name))

  def batch(*without):
    config = input_ours.config_of(settings(folder, bench.ours()))
    input_ours.without(config, without)
    made = pipeline.train_loader(config, process_index=0, process_count=1)
    return config, next(made)

  config, want = batch()
  assert want["image"].dtype == np.uint8
  changed, got = batch(*([measure] if measure else []))
  patched = measure in ("vector resampling", "flip by channels", "arrays from JPEGs")
  assert (changed.data.transforms == config.data.transforms) == (
    patched or measure is None
  )
  image = got["image"]
  if measure == "bytes to the device":
    image = (image + 1) * 127.5
  assert np.abs(image.astype(float) - want["image"]).max() <= 1.001
  np.testing.assert_array_equal(got["text"], want["text"])


def test_our_loader_is_timed_in_a_process_of_its_own(tmp_path, monkeypatch, capsys):
  cache = jax.config.jax_compilation_cache_dir
  monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
  monkeypatch.setattr(bench, "_installed", lambda name: False)
  run = tmp_path / "run"
  run.mkdir()
  (run / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "data_wait": 0.25}\n')
  (run / "environment.json").write_text('{"command": "python train.py"}')
  (run / "config.json").write_text('{"total_steps": 2, "batch_size": 8}')
  words = (
    "--groups|in the main process|--only|ours|torch|--examples|8|--side|64|--size|16"
  )
  words += (
    f"|--batch|4|--rounds|1|--steps|1|--vocab|284|--demo|{run}|--out|{tmp_path}/x"
  )
  bench.main(words.split("|"))
  report = json.loads((tmp_path / "x").read_text())
  rows = report["results"]["in the main process"]["rows"]
  assert list(rows) == ["ours"] and rows["ours"]["image"] == "float32[4, 16, 16, 3]"
  row = rows["ours"]
  assert row["images_per_second_per_core"] == pytest.approx(
    1e6 / row["cpu_microseconds"]["median"], abs=0.1
  )
  assert report["demo"]["mean_data_wait"] == 0.25 and report["demo"]["steps"] == 2
  assert report["data"]["64"]["examples"] == 8
  said = capsys.readouterr().out
  assert "requirements-bench.txt" in said and "images/s/core" in said


def test_groups_compare_with_torch_and_else_with_ours():
  for group, contenders in bench.groups().items():
    assert next(iter(contenders)) == "ours"
    assert ("torch" in contenders) == (group != input_table.ABLATION)


def test_the_time_of_workers_counts(monkeypatch):
  alone = turns.cpu_seconds()
  assert alone == pytest.approx(time.process_time(), abs=0.1)
  me = types.SimpleNamespace(pid=os.getpid())
  monkeypatch.setattr(turns.multiprocessing, "active_children", lambda: [me])
  assert turns.cpu_seconds() == pytest.approx(2 * time.process_time(), abs=0.2)


def test_steps_before_a_turn_are_not_counted():
  log = []

  def step():
    log.append(time.sleep(0.05))
    return lambda: None

  assert turns.clocked(step, 1, warm=4).wall < 0.2 and len(log) == 5


def test_the_page_shows_the_committed_reports():
  page = (ROOT / "docs" / "input_pipeline.md").read_text()
  shown = re.findall(r"<!-- (\w+): (.*?) -->\n(.*?)<!-- end -->", page, re.DOTALL)
  assert [name for name, _, _ in shown] == ["speed", "ablation", "quality"]
  for name, files, table in shown:
    reports = [json.loads((ROOT / file).read_text()) for file in files.split()]
    assert table.strip() == getattr(input_table, name)(*reports)
  report = json.loads((ROOT / "benchmarks/results/input_cpu.json").read_text())
  assert f"waited for its data for {report['demo']['mean_data_wait']:.2%} of" in page
  assert report["demo"]["mean_data_wait"] < 0.02


def test_a_reduced_decode_is_compared_with_the_whole():
  found = jpeg_quality.compared(photos.photo(0, 200), 90)
  assert 30 < found["1/2"] < 60 < found["1/2, of the JPEG"] + 30
  assert jpeg_quality.psnr(np.zeros(9, np.uint8), np.zeros(9, np.uint8)) == np.inf
  assert jpeg_quality.psnr(np.zeros(9, np.uint8), np.full(9, 255, np.uint8)) == 0


@pytest.mark.skipif(not HAS_PEERS, reason="needs requirements-bench.txt")
@pytest.mark.parametrize("peer", bench.PEERS)
def test_a_peer_does_the_same_work(folder, peer):
  module = importlib.import_module("benchmarks.contenders.input_torch")
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its tars open
    images_, ids = next(module.batches(settings(folder, bench.peer(peer))))
    gc.collect()
  assert (
    tuple(images_.shape) == (4, 3, 40, 40) and str(images_.dtype) == "torch.float32"
  )
  config = input_ours.config_of(settings(folder, bench.ours()))
  made = pipeline.train_loader(config, process_index=0, process_count=1)
  batches = [next(made) for _ in range(2)]  # an epoch
  ours = {tuple(row) for b in batches for row in b["text"].tolist()}
  assert {tuple(row) for row in np.asarray(ids).tolist()} <= ours
  image = np.concatenate([b["image"] for b in batches]) / 127.5 - 1
  assert float(images_.mean()) == pytest.approx(image.mean(), abs=0.3)
