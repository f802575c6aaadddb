import json
import math
import pathlib

from absl import logging
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from configs import base
from training import metrics


def events(workdir):
  """Returns the TensorBoard events of a workdir, from the TFRecord framing."""
  files = sorted(pathlib.Path(workdir, "tensorboard").glob("events.*"))
  return [event for path in files for event in decoded(path.read_bytes())]


def decoded(data):
  """Returns the events of one file."""
  found, at = [], 0
  while at < len(data):
    size = int.from_bytes(data[at : at + 8], "little")
    found.append(event_pb2.Event.FromString(data[at + 12 : at + 12 + size]))
    at += size + 16
  return found


def tags(workdir):
  return {v.tag: e for e in events(workdir) for v in e.summary.value}


def test_a_full_disk_loses_no_line_and_ends_nothing(tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
  writer = metrics.Writer(str(tmp_path))
  writer.write(1, {"x": 1.0})

  class Full:
    """Takes three bytes, then none."""

    def __init__(self, file):
      self.file, self.room = file, 3

    def write(self, data):
      if not self.room:
        raise OSError(28, "No space left on device")
      self.room = 0
      return self.file.write(data[:3])

    def close(self):
      self.file.close()

  disk = writer._lines._file
  writer._lines._file = Full(disk)
  inner = writer._board.file_writer.event_writer._inner
  inner._worker.stop()  # as an error ends it; a queue without reader once hung the run
  for step in range(2, 60):
    writer.write(step, {"x": 1.0, "y": 2.0})
  writer._lines._file = disk
  writer.write(60, {"x": 1.0})
  writer.close()
  assert [row["step"] for row in metrics.read(str(tmp_path))] == list(range(1, 61))
  assert sorted(text.split(" ")[0] for text in said) == [
    "TensorBoard's",
    "metrics.jsonl:",
  ]


def test_it_is_clus_interface(tmp_path):
  assert issubclass(metrics.Writer, metrics.MetricWriter)
  assert metrics.MetricWriter.__abstractmethods__ >= {"write_scalars", "flush", "close"}
  writer = metrics.Writer(str(tmp_path))  # every abstract method is there
  writer.close()
  writer.close()


def test_one_record_a_write_exact_and_readable(tmp_path):
  writer = metrics.Writer(str(tmp_path / "new" / "run"))
  loss = np.float32(0.1)
  writer.write(
    3,
    {
      "loss": loss,
      "load": jnp.array([[0.25, 0.75]]),
      "half": jnp.bfloat16(1.5),
      "bad": float("nan"),
      "seen": np.int32(7),
      "large": np.zeros(metrics.LARGEST + 1),
    },
  )
  lines = (tmp_path / "new" / "run" / "metrics.jsonl").read_text().splitlines()
  (record,) = [json.loads(line, parse_constant=pytest.fail) for line in lines]
  assert np.float32(record.pop("loss")) == loss
  assert record == {
    "step": 3,
    "load": [[0.25, 0.75]],
    "half": 1.5,
    "bad": None,
    "seen": 7,
  }
  writer.close()
  seen = tags(tmp_path / "new" / "run")
  assert seen["loss"].step == 3
  assert seen["loss"].summary.value[0].simple_value == loss
  assert seen["load"].summary.value[0].histo.num == 2
  assert seen["large"].summary.value[0].histo.num == metrics.LARGEST + 1


def test_text_is_no_metric(tmp_path):
  writer = metrics.Writer(str(tmp_path))
  with pytest.raises(TypeError, match="metric name is <U1; expected numbers"):
    writer.write(0, {"name": "x"})
  writer.close()


def test_the_loss_of_every_step(tmp_path):
  writer = metrics.Writer(str(tmp_path))
  writer.write_losses([(1, 2.5), (2, math.inf)])
  writer.close()
  assert metrics.read(str(tmp_path)) == [
    {"step": 1, "loss": 2.5},
    {"step": 2, "loss": None},
  ]


def test_resuming_forgets_what_will_be_written_again(tmp_path):
  writer = metrics.Writer(str(tmp_path))
  for step in range(1, 6):
    writer.write(step, {"loss": step})
  writer.close()
  with (tmp_path / "metrics.jsonl").open("a") as f:
    f.write('{"step": 3, "lo')  # killed while writing
  writer = metrics.Writer(str(tmp_path), resume_step=3)
  writer.write(4, {"loss": 40})
  writer.close()
  records = metrics.read(str(tmp_path))
  assert [(r["step"], r["loss"]) for r in records] == [(1, 1), (2, 2), (3, 3), (4, 40)]
  assert not list(tmp_path.glob("*.new"))
  # TensorBoard hides the events from the first step that is written again.
  start = [e for e in events(tmp_path) if e.HasField("session_log")]
  assert [e.step for e in start] == [4]


def test_without_a_step_to_resume_at_all_is_kept(tmp_path):
  for value in (1, 2):
    writer = metrics.Writer(str(tmp_path))
    writer.write(value, {"loss": value})
    writer.close()
  assert [r["step"] for r in metrics.read(str(tmp_path))] == [1, 2]
  assert metrics.read(str(tmp_path / "nothing")) == []


def test_the_rest_of_the_interface(tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
  writer = metrics.Writer(str(tmp_path))
  writer.write_scalars(1, {"s": 1.0})
  writer.write_arrays(1, {"a": np.ones(3)})
  writer.write_summaries(1, {"b": np.ones(2)})
  writer.write_histograms(1, {"h": np.arange(9.0), "nan": [math.nan]}, {"h": 3})
  writer.write_images(
    1, {"i": np.zeros((4, 5, 3), np.uint8), "n": np.ones((2, 4, 5, 3))}
  )
  writer.write_texts(1, {"t": "*hello*"})
  writer.write_hparams({"lr": 0.1, "name": "x", "shape": (1, 2)})
  for _ in range(2):
    writer.write_audios(1, {"sound": np.zeros((1, 8, 1))}, sample_rate=8)
    writer.write_videos(1, {"film": np.zeros((1, 8, 4, 4, 3))})
  with pytest.raises(ValueError, match=r"image i has shape \(4, 5\)"):
    writer.write_images(1, {"i": np.zeros((4, 5))})
  writer.flush()
  writer.close()
  seen = tags(tmp_path)
  assert {"s", "a", "b", "h", "i", "n/0", "n/1", "_hparams_/experiment"} <= set(seen)
  assert any(tag.startswith("t") for tag in seen)
  assert "nan" not in seen
  image = seen["i"].summary.value[0].image
  assert (image.height, image.width) == (4, 5)
  assert len(said) == 2 and "sound not written" in said[0]
  assert [r.get("a") or r.get("b") for r in metrics.read(str(tmp_path))] == [
    None,
    [1.0] * 3,
    [1.0] * 2,
  ]


def test_only_the_first_process_writes(tmp_path):
  writer = metrics.Writer(str(tmp_path), enabled=False)
  writer.write(1, {"loss": 1.0})
  writer.write_losses([(1, 1.0)])
  writer.write_texts(1, {"t": "x"})
  writer.write_hparams({"a": 1})
  writer.flush()
  writer.close()
  assert not list(tmp_path.iterdir())


def test_a_bucket_is_rewritten_at_each_flush(tmp_path):
  # A bucket cannot append. The class is the same; only its path has a scheme.
  class Bucket:
    def __init__(self):
      self.text = '{"step": 1, "loss": 1.0}\n{"step": 9, "loss": 1.0}\n'

    def __str__(self):
      return "gs://bucket/metrics.jsonl"

    def exists(self):
      return True

    def read_text(self):
      return self.text

    def write_text(self, text):
      self.text = text

  bucket = Bucket()
  lines = metrics._Lines(bucket, resume_step=5)
  lines.append(6, {"loss": 2.0})
  lines.close()
  assert bucket.text == '{"step": 1, "loss": 1.0}\n{"step": 6, "loss": 2.0}\n'


def test_a_starved_modality_is_named_once(tmp_path, monkeypatch):
  said = []
  monkeypatch.setattr(logging, "warning", lambda text, *args: said.append(text % args))
  config = base.get_config()  # text should use 1.5 experts at least, images 2.5
  writer = metrics.Writer(str(tmp_path))
  values = {
    "metrics/moe/layer01/effective_experts/text": np.float32(1.2),
    "metrics/moe/layer01/served/text": np.float32(1),
    "metrics/moe/layer01/effective_experts/image": np.float32(3),
    "metrics/moe/layer03/effective_experts/image": np.float32(1),
    "metrics/moe/layer03/served/image": np.float32(0),  # no images came by
  }
  (warning,) = writer.warn_of_collapse(7, values, config)
  assert warning.startswith("step 7: metrics/moe/layer01/effective_experts/text = 1.20")
  assert said == [warning]
  assert writer.warn_of_collapse(8, values, config) == []
  # What falls later is named then.
  values["metrics/moe/layer01/served/text"] = np.float32(0.4)
  (later,) = writer.warn_of_collapse(9, values, config)
  assert later.startswith("step 9: metrics/moe/layer01/served/text = 0.40")
  writer.close()
