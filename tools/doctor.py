"""Looks a run over before it starts: one screen, each line OK or what to do.

python -m tools.doctor --config configs/x.py --workdir runs/x [--config.key=value ...]

Takes the flags of train.py, and on several hosts is started as train.py is: process 0
prints. Writes nothing that stays. --quick leaves out what compiles: the predicted
memory and the speeds. Exit status 0 if no line is FAIL, else 1. A check that is itself
beaten by what it meets says so and is a FAIL, not a traceback.
"""

from collections.abc import Callable, Sequence
import dataclasses
import os
import sys
import textwrap
from typing import Any

OK, WARN, FAIL, SKIP = "OK", "WARN", "FAIL", "SKIP"
INSTALL = "Install the requirements again: pip install -r requirements.txt"
THOROUGH = "thorough"  # found without --quick
WIDTH = 88
_LONGEST = 420  # characters of a line's text: an error may be a page


class Warn(Exception):
  """The run will work, but not well; says what to do."""


@dataclasses.dataclass(frozen=True)
class Line:
  """One check's outcome: its level, and what was found or is to be done."""

  name: str
  level: str
  text: str

  def __str__(self) -> str:
    text = " ".join(self.text.split())
    if len(text) > _LONGEST:
      text = text[:_LONGEST] + " ..."
    head = f"{self.level:<5}{self.name:<10}"
    return textwrap.fill(
      head + text, WIDTH, subsequent_indent=" " * len(head), break_long_words=False
    )


def examine(
  checks: Sequence[tuple[str, Callable[[dict[str, Any]], str], tuple[str, ...]]],
  found: dict[str, Any],
  show: Callable[[Line], None] = lambda line: None,
) -> list[Line]:
  """Runs checks in order; none of them can end the others.

  Args:
    checks: (name, check, needs): the check returns what it found, raises `Warn`, or
      raises anything else, which is a failure; it is skipped where a name in `needs`
      is not in `found`, without a word if that is THOROUGH.
    found: what the checks hand on to each other.
    show: is called with each line at once.
  """
  lines = []
  for name, check, needs in checks:
    missing = [key for key in needs if key not in found]
    if THOROUGH in missing:
      continue
    if missing:
      line = Line(name, SKIP, "needs what failed above")
    else:
      try:
        line = Line(name, OK, check(found))
      except Warn as e:
        line = Line(name, WARN, str(e))
      except Exception as e:  # whatever it is, it is what the user has to know
        kind = "" if isinstance(e, ValueError | OSError) else f"{type(e).__name__}: "
        line = Line(name, FAIL, f"{kind}{e}")
    lines.append(line)
    show(line)
  return lines


def main() -> int:
  """Prints the screen of sys.argv's run; returns the exit status."""
  if {"-h", "--help"} & set(sys.argv):
    print(__doc__)
    return 0
  try:
    from tools import doctor_checks  # imports jax, which may be what is broken
  except Exception as e:
    print(Line("imports", FAIL, f"{type(e).__name__}: {e}. {INSTALL}"))
    return 1
  found: dict[str, Any] = {}
  shown = []

  def show(line: Line) -> None:
    # Of several hosts, process 0 prints all, the others what is wrong with them.
    if os.environ.get("JAX_PROCESS_ID", "0") == "0" or line.level == FAIL:
      print(line, flush=True)
    shown.append(line)

  examine(doctor_checks.CHECKS, found, show)
  bad = [line.name for line in shown if line.level == FAIL]
  worse = [line.name for line in shown if line.level == WARN]
  print(_verdict(bad, worse))
  return int(bool(bad))


def _verdict(bad: Sequence[str], worse: Sequence[str]) -> str:
  if bad:
    return f"{len(bad)} to mend: {', '.join(bad)}"
  return f"ready, but look at {', '.join(worse)}" if worse else "ready to train"


if __name__ == "__main__":
  # Not this module's: the checks raise the Warn of the one that they import.
  from tools import doctor

  sys.exit(doctor.main())
