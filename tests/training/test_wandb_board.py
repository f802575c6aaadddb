"""config.wandb, with a module that stands in for the library."""

import sys
import types

import pytest

from tests.small import tiny
from training import metrics, wandb_board


@pytest.fixture
def calls(monkeypatch):
  """What the run asked of wandb, as (name, arguments)."""
  made = []

  class Run:
    def __getattr__(self, name):
      return lambda *args, **kwargs: made.append((name, args or kwargs))

  def init(**kwargs):
    made.append(("init", kwargs))
    return Run()

  fake = types.SimpleNamespace(init=init)
  monkeypatch.setitem(sys.modules, "wandb", fake)
  return made


def run(workdir):
  config = tiny(wandb="project")
  board = wandb_board.start(config, str(workdir))
  writer = metrics.Writer(str(workdir), resume_step=0, board=board)
  writer.write(3, {"loss": 1.5, "load": [1.0, 2.0], "bad": float("nan")})
  writer.close()


def test_scalars_go_there_and_a_resumed_run_goes_on_there(calls, tmp_path):
  run(tmp_path)
  init, define, log, finish = calls
  assert init[1]["project"] == "project" and init[1]["resume"] == "allow"
  assert init[1]["config"]["batch_size"] == 16
  assert define == ("define_metric", ("*",)) or define[0] == "define_metric"
  assert log == ("log", ({"step": 3, "loss": 1.5},))
  assert finish[0] == "finish"
  calls.clear()
  run(tmp_path)
  assert calls[0][1]["id"] == init[1]["id"] == (tmp_path / wandb_board.FILE).read_text()


def test_nothing_is_imported_unless_it_is_asked_for(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, "wandb", None)  # as where it is not installed
  assert wandb_board.start(tiny(), str(tmp_path)) is None
  wandb_board.check(tiny())
  with pytest.raises(
    ModuleNotFoundError, match=r"config\.wandb = 'p'.*pip install wandb"
  ):
    wandb_board.check(tiny(wandb="p"))


def test_only_process_0_writes(calls, monkeypatch, tmp_path):
  monkeypatch.setattr(wandb_board.jax, "process_index", lambda: 1)
  config = tiny(wandb="p")
  wandb_board.check(config)
  assert wandb_board.start(config, str(tmp_path)) is None
  assert not calls and not list(tmp_path.iterdir())
