"""Whether the files of a checkpoint are as they were written: a digest of each.

Orbax moves a finished step into place, so that a killed save is never taken for a step.
What happens to files afterwards, or beneath, it does not see: bits that flip, files cut
short when the power fails, a deletion that was killed half-way. TensorStore restores
arrays with flipped bits without a word (docs/reliability.md has the counts).

The digests are written before the step is moved into place, so every step has them.
They cost reading it once, in the background, when it is saved, and once more when it is
resumed from; there the hosts share the files.
"""

from collections.abc import Callable, Mapping
from concurrent import futures
import hashlib
import json
from typing import Any

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np

FILE = "digests.json"
# Orbax's own file beside the items; written to after the digests, and not needed.
METADATA = "_CHECKPOINT_METADATA"
MARK = {"digests": FILE}  # custom metadata of a step that has digests
LARGE = "state/"  # the item that holds the arrays
_BLOCK = 1 << 23  # bytes read at a time
_THREADS = 8


def write(folder: Any) -> None:
  """Writes the digests of a step's files, all but those beside its items."""
  folder = epath.Path(folder)
  names = sorted(_files(folder))
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    found = dict(zip(names, pool.map(lambda name: _digest(folder / name), names)))
  (folder / FILE).write_text(_text(found))


def damage(
  folder: Any, part: int = 0, parts: int = 1, large: bool = True
) -> list[str] | None:
  """Returns what is wrong with a step's files, [] if nothing; None: it has no digests.

  Args:
    folder: of the step.
    part: which share of the files to read, of `parts`: hosts share the work.
    parts: how many shares there are.
    large: whether to read the arrays' files too.
  """
  folder = epath.Path(folder)
  try:
    files = _expected(folder)
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    return [f"{FILE}: {e}"]
  if files is None:
    return None
  # The largest first, dealt out in turn: shares of about the same size.
  names = sorted(files, key=lambda name: (-files[name][0], name))
  mine = [n for n in names if large or not n.startswith(LARGE)][part::parts]
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    found = pool.map(lambda name: _compare(folder / name, *files[name]), mine)
    return [f"{name}: {what}" for name, what in zip(mine, found) if what]


def check(folder: Any, asked_by: str) -> None:
  """Raises ValueError if a step's files are damaged; without digests they pass.

  Args:
    folder: of the step, or of parameters alone.
    asked_by: the key or flag that names it, for the error message.
  """
  folder = epath.Path(folder)
  if not any((folder / name).exists() for name in (FILE, METADATA)):
    return  # parameters alone, of before they had digests
  found = damage(folder, jax.process_index(), jax.process_count())
  if found:
    raise ValueError(
      f"{asked_by}: the checkpoint {folder} is damaged: {summary(found)}. Name another "
      "step's folder, or a copy that is whole."
    )


def set_aside(steps: Mapping[int, Any], say: Callable[[str], None]) -> dict[int, Any]:
  """Renames the damaged steps, until the newest is whole; every host gets the same.

  Of older steps, which are not resumed from, only the small files are read: those that
  tell how good a step is.

  Args:
    steps: step -> folder, as this host sees them.
    say: what tells the user.

  Returns:
    The steps that are left.

  Raises:
    ValueError: there are steps, and all are damaged; they stay where they are.
  """
  left: dict[int, Any] = {}
  bad: dict[int, str] = {}
  below = 2**31 - 1
  while (step := _first_hosts(max((s for s in steps if s < below), default=-1))) >= 0:
    below = step
    folder = steps.get(step)
    found = ["another host sees it, this one does not"]
    if folder is not None:
      share = jax.process_index(), jax.process_count()
      found = damage(folder, *share, large=not left) or []
    for line in found:
      logging.warning("step %d: %s", step, line)
    if _any_host(bool(found)):
      bad[step] = summary(found or ["as another host found"])
    else:
      left[step] = folder
  listed = "\n".join(f"  step {step}: {what}" for step, what in bad.items())
  if bad and not left:
    raise ValueError(
      f"every checkpoint is damaged:\n{listed}\nNothing was changed. Restore a copy of "
      f"{steps.get(max(bad))}, or move them away to start anew."
    )
  for step, what in bad.items():
    folder = steps[step]
    say(f"the checkpoint of step {step} is damaged ({what}): not used")
    if jax.process_index() == 0:
      target = _free(folder)
      folder.rename(target)
      say(f"  it is now {target}; nothing needs it")
  if bad:
    say(f"the newest whole checkpoint is that of step {max(left)}")
    _meet("damaged checkpoints set aside")
  return left


def _free(folder: epath.Path) -> epath.Path:
  """Returns a name for a damaged step, which is not taken for a step."""
  target, count = folder.parent / f"{folder.name}.damaged", 1
  while target.exists():
    count += 1
    target = folder.parent / f"{folder.name}.damaged{count}"
  return target


def _first_hosts(value: int) -> int:
  """Returns the value of host 0, on every host."""
  if jax.process_count() == 1:
    return value
  return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def _any_host(value: bool) -> bool:
  """Returns whether it is true on any host, on every host."""
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.process_allgather(np.int32(value)).any())


def _meet(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def summary(found: list[str]) -> str:
  """Returns one line of what `damage` found."""
  more = f" and {len(found) - 1} more files" if len(found) > 1 else ""
  return found[0] + more


def _expected(folder: epath.Path) -> dict[str, tuple[int, str]] | None:
  """Returns path -> (bytes, digest); None for a step that never had digests."""
  path = folder / FILE
  if not path.exists():
    # Gone, unless the step says that it was written without.
    if not (folder / METADATA).exists():
      raise ValueError("missing, and so are other files: its deletion was interrupted")
    made = json.loads((folder / METADATA).read_text()).get("custom_metadata") or {}
    if made.get("digests"):
      raise ValueError("missing")
    return None
  text = path.read_text()
  files = json.loads(text)["files"]
  if text != _text(files):
    raise ValueError("not as it was written")
  return {name: (int(size), str(digest)) for name, (size, digest) in files.items()}


def _text(files: Mapping[str, Any]) -> str:
  """Returns what FILE holds of path -> (bytes, digest)."""
  return json.dumps({"algorithm": "sha256", "files": files}, indent=1)


def _files(folder: epath.Path, prefix: str = "") -> list[str]:
  """Returns the paths of the files in a step's subfolders, which are its items."""
  out = []
  for path in folder.iterdir():
    if path.is_dir():
      out += _files(path, f"{prefix}{path.name}/")
    elif prefix:
      out.append(prefix + path.name)
  return out


def _digest(path: epath.Path) -> tuple[int, str]:
  size, digest = 0, hashlib.sha256()
  with path.open("rb") as file:
    while block := file.read(_BLOCK):
      size += len(block)
      digest.update(block)
  return size, digest.hexdigest()


def _compare(path: epath.Path, size: int, digest: str) -> str:
  """Returns what is wrong with one file, "" if nothing."""
  try:
    found, actual = _digest(path)
  except OSError as e:
    return str(e.strerror or e)
  if found != size:
    return f"{found:,} bytes, {size:,} were written"
  return "" if actual == digest else "its bytes are not those that were written"
