"""Errors whose message is the whole answer: shown without a traceback.

Settings that cannot work are answered before the first step with the message and exit
status 2. What is raised inside the steps, or is a bug by its type, keeps its traceback.
"""

from collections.abc import Iterator
import contextlib
import os
import sys

from absl import flags

from sharding import distributed

KINDS = (ValueError, OSError, ModuleNotFoundError)
INTERRUPTED = 130  # the exit status of SIGINT, as shells have it


class Explained(Exception):
  """Says what happened and what to do; `status` is the exit status of the process."""

  status = 1


class SettingsError(Explained, ValueError):
  """The config, the workdir or the environment cannot work as they are."""

  status = 2


@contextlib.contextmanager
def settings(*kinds: type[Exception]) -> Iterator[None]:
  """Encloses what checks settings: errors of `kinds`, else KINDS, are SettingsError."""
  caught = kinds or KINDS
  try:
    yield
  except Explained:
    raise
  except caught as e:
    raise SettingsError(str(e)) from e


@contextlib.contextmanager
def hosts() -> Iterator[None]:
  """Encloses the meeting of the hosts: those that did not come are no traceback."""
  try:
    yield
  except distributed.Apart as e:
    explained = Explained(str(e))
    explained.status = e.status
    distributed.end_soon(e.status)
    raise explained from e


@contextlib.contextmanager
def parsing() -> Iterator[None]:
  """Encloses the parsing of the flags, in which ml_collections runs the recipe."""
  with settings():
    try:
      yield
    except (AttributeError, flags.Error) as e:
      # ml_collections puts the traceback of a recipe's error into the message.
      first: BaseException = e
      while "Traceback (most" in str(first) and first.__context__ is not None:
        first = first.__context__
      if isinstance(first, AttributeError) and isinstance(first.__context__, KeyError):
        key = first.__context__.args[0]
        raise SettingsError(f"the config has no key {key}".replace("\n", ". ")) from e
      if not isinstance(first, (flags.Error, *KINDS)):
        raise
      raise SettingsError(str(first)) from e


@contextlib.contextmanager
def shown(debug: bool = False) -> Iterator[None]:
  """Ends the process with the message of an Explained; `debug` shows its traceback.

  Of an interrupt as well: what it meets here is the preparation, where nothing is saved
  because nothing was trained, or a loop that was asked twice; the first time it answers
  between steps.
  """
  try:
    yield
  except KeyboardInterrupt:
    if debug:
      raise
    print("interrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)  # at once: sys.exit waits for the thread of a save
  except Explained as e:
    if debug:
      raise
    print(f"error: {e}", file=sys.stderr, flush=True)
    sys.exit(e.status)
