"""The whole pipeline runs where importing TensorFlow, PyTorch or JAX fails."""

import subprocess
import sys
import textwrap

from tests.input_pipeline.pairs import make_config

PROGRAM = """
import sys

for name in ("tensorflow", "torch", "jax"):
  sys.modules[name] = None  # importing it raises
import json
from ml_collections import ConfigDict
from input_pipeline import pipeline
from input_pipeline.sources import arrayrecord, emoji, tfds
config = ConfigDict(json.loads(sys.stdin.read()))
loader = pipeline.train_loader(config, process_index=0, process_count=1)
print(next(loader)["image"].shape)
loader.close()
"""


def test_nothing_imports_them(paths, tokenizer):
  config = make_config(paths, tokenizer)
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(PROGRAM)],
    input=config.to_json_best_effort(),
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode == 0, done.stderr
  assert "(12, 16, 16, 3)" in done.stdout
