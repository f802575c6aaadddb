"""The real train.py on sounds, speech, videos, series and tunes, with evaluation."""

import json
import math
import sys

import pytest

from tests.entry.runs import losses, run

WAYS = {
  "sound_text": ("a2t", "t2a"),
  "video_text": ("v2t", "t2v"),
  "series_text": ("s2t", "t2s"),
  "music_text": ("m2t", "t2m"),
  "speech_tuxpaint": ("i2t", "t2i", "a2t", "t2a", "i2a", "a2i"),
}


def train(config, workdir, *more):
  start = [sys.executable, "train.py", f"--config=configs/{config}"]
  done = run([*start, f"--workdir={workdir}", *more])
  assert done.returncode == 0, done.stderr
  rows = [json.loads(x) for x in (workdir / "metrics.jsonl").read_text().splitlines()]
  return {k: v for row in rows for k, v in row.items()}


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_a_recipe_trains_and_is_evaluated_in_every_direction(name, tmp_path):
  steps = 60 if name == "sound_text" else 6
  found = train(f"{name}.py:runlocal", tmp_path, f"--config.total_steps={steps}")
  for way in WAYS[name]:
    assert 0 <= found[f"eval/retrieval/{way}_r1"] <= 1
  assert found["eval/retrieval/n"] == 240
  values = [float(x) for x in losses(tmp_path).values()]
  assert len(values) == steps and all(map(math.isfinite, values))
  if name == "sound_text":
    assert sum(values[-5:]) < 0.8 * sum(values[:5])


@pytest.mark.slow
def test_three_modalities_at_once_by_symile(tmp_path):
  found = train(
    "speech_tuxpaint.py:runlocal,loss=symile", tmp_path, "--config.total_steps=6"
  )
  assert math.isfinite(found["symile/loss"])
  assert any(k.startswith("metrics/moe/layer01/served/audio") for k in found)
