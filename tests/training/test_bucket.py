"""A workdir in a bucket: what a run writes beside its checkpoints, in memory."""

import json
import typing

from etils import epath
import fsspec
from fsspec.implementations.memory import MemoryFileSystem
import numpy as np
import pytest

from evaluators import context
from tests.small import tiny
from tests.training.test_metrics import decoded
from training import checkpoint, environment, metrics

WORKDIR = "s3://bucket/run"


class Bucket(MemoryFileSystem):
  """s3:// in this process's memory."""

  protocol = ("s3",)
  store: typing.ClassVar[dict] = {}
  pseudo_dirs: typing.ClassVar[list] = [""]


@pytest.fixture(autouse=True)
def bucket():
  fsspec.register_implementation("s3", Bucket, clobber=True)
  yield Bucket.store
  Bucket.store.clear()


def test_all_that_a_run_writes_is_there(bucket):
  config = tiny()
  checkpoint.check_workdir(WORKDIR)
  checkpoint.save_config(WORKDIR, config)
  environment.write(WORKDIR, config)
  made = environment.read(WORKDIR)
  assert made["processes"] == 1
  where = context.Context(mesh=None, encode=None, config=config, workdir=WORKDIR)
  context.save(where, "retrieval", z=np.ones(3))
  writer = metrics.Writer(WORKDIR)
  writer.write(1, {"loss": 0.5})
  writer.flush()  # what a checkpoint is preceded by
  names = {name.split("/run/")[1].split("/")[0] for name in bucket}
  assert names == {
    "config.json",
    "environment.json",
    "artifacts",
    "metrics.jsonl",
    "tensorboard",
  }
  writer.write(2, {"loss": 0.25})
  writer.close()
  assert json.loads((epath.Path(WORKDIR) / "config.json").read_text())["batch_size"]
  assert metrics.read(WORKDIR) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
  (board,) = (epath.Path(WORKDIR) / "tensorboard").iterdir()
  steps = [e.step for e in decoded(board.read_bytes()) if e.summary.value]
  assert steps == [1, 2]


def test_a_resumed_run_forgets_what_it_will_write_again(bucket):
  for resume in (None, 1):
    writer = metrics.Writer(WORKDIR, resume_step=resume)
    for step in (1, 2) if resume is None else (2,):
      writer.write(step, {"loss": float(step), "resumed": int(resume or 0)})
    writer.close()
  assert [(r["step"], r["resumed"]) for r in metrics.read(WORKDIR)] == [(1, 0), (2, 1)]
  assert len(list((epath.Path(WORKDIR) / "tensorboard").iterdir())) >= 1
