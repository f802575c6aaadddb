"""What ends with its message only, and what keeps its traceback."""

from absl import flags
from ml_collections import ConfigDict
import pytest

from training import errors


@pytest.mark.parametrize("kind", [ValueError, PermissionError, ModuleNotFoundError])
def test_wrong_settings_end_with_their_message_and_2(kind, capsys):
  with pytest.raises(SystemExit) as end, errors.shown(), errors.settings():
    raise kind("pip install something")
  assert end.value.code == 2
  assert capsys.readouterr().err == "error: pip install something\n"


@pytest.mark.parametrize("kind", [TypeError, KeyError, AttributeError, RuntimeError])
def test_bugs_keep_their_traceback(kind):
  with pytest.raises(kind), errors.shown(), errors.settings():
    raise kind("a bug")


def test_what_no_setting_encloses_keeps_its_traceback():
  with pytest.raises(ValueError, match="in a step"), errors.shown():
    raise ValueError("in a step")


def test_debug_keeps_the_traceback_of_the_cause():
  with (
    pytest.raises(errors.SettingsError) as got,
    errors.shown(debug=True),
    errors.settings(),
  ):
    raise ValueError("x")
  assert isinstance(got.value.__cause__, ValueError)


def test_an_explained_error_keeps_its_status_inside_settings(capsys):
  with pytest.raises(SystemExit) as end, errors.shown(), errors.settings():
    raise errors.Explained("not finite")
  assert end.value.code == 1


def test_an_interrupt_before_the_loop_ends_in_a_word_and_130(capsys, monkeypatch):
  codes = []
  monkeypatch.setattr(errors.os, "_exit", codes.append)  # waits for no thread
  with errors.shown():
    raise KeyboardInterrupt
  assert codes == [130]
  assert capsys.readouterr().err == "interrupted\n"


def test_named_kinds_replace_the_usual_ones():
  with pytest.raises(errors.SettingsError), errors.settings(RuntimeError):
    raise RuntimeError("peers")
  with pytest.raises(ValueError) as got, errors.settings(RuntimeError):
    raise ValueError("x")
  assert not isinstance(got.value, errors.SettingsError)


def nested(cause, trace="Traceback (most recent call last):"):
  """Raises as ml_collections does when a recipe fails: the trace in the message."""
  try:
    try:
      raise cause
    except Exception as e:
      raise type(e)(f"Error whilst parsing config file: {trace} {e}")  # noqa: B904
  except Exception as e:
    raise flags.IllegalFlagValueError(f"flag --config: {e}")  # noqa: B904


def test_a_recipe_that_refuses_its_argument_says_why():
  with pytest.raises(errors.SettingsError) as got, errors.parsing():
    nested(ValueError("unknown argument"))
  assert str(got.value) == "unknown argument"


def test_a_bug_of_a_recipe_keeps_its_traceback():
  with pytest.raises(flags.IllegalFlagValueError), errors.parsing():
    nested(TypeError("a bug"))


def test_an_unknown_key_of_the_config_is_named():
  with pytest.raises(errors.SettingsError, match="key 'stepz'"), errors.parsing():
    ConfigDict({"steps": 1}).stepz  # noqa: B018
  with pytest.raises(AttributeError, match="append"), errors.parsing():
    ().append  # noqa: B018


def test_hosts_that_did_not_meet_end_with_their_status(monkeypatch):
  ending = []
  monkeypatch.setattr(errors.distributed, "end_soon", ending.append)
  with pytest.raises(errors.Explained, match="never joined") as raised, errors.hosts():
    raise errors.distributed.Apart("process 2 of 3 never joined")
  assert raised.value.status == 75 and ending == [75]
