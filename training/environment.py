"""Where a run was made: devices, versions, code and data, for whoever asks later."""

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from typing import Any

from etils import epath
import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
OPTIONAL = ("jax-triton", "triton")  # requirements-gpu.txt
# Variables that change what is computed, or how; not who computes it.
_FLAGS = re.compile(r"XLA_\w+|JAX_\w+|LIBTPU_INIT_ARGS|NCCL_\w+|TF_XLA_FLAGS")
_PLACES = re.compile(r"JAX_(COORDINATOR_\w+|PROCESS_ID|NUM_PROCESSES|\w+_DIR)")
_SAME = ("device", "processes", "versions", "flags", "revision", "data")
_FILES = ("paths", "root", "table")  # options of sources that name files


def describe() -> dict[str, str]:
  """Returns {"device", "versions", "command"} of this process."""
  devices = jax.devices()
  kind = devices[0].device_kind
  if kind == "cpu":
    kind = f"{platform.machine()} CPU, {os.cpu_count()} cores"
  found = [f"Python {platform.python_version()}"]
  for package in (*PACKAGES, *OPTIONAL):
    try:
      found.append(f"{package} {importlib.metadata.version(package)}")
    except importlib.metadata.PackageNotFoundError:
      continue
  return {
    "device": f"{len(devices)} x {kind}",
    "versions": ", ".join(found),
    "command": " ".join(["python", *map(without_folders, sys.argv)]),
  }


def fingerprint(config: Any) -> dict[str, Any]:
  """Returns what `describe` does and all else that decides what a run computes.

  Keys: processes; flags, the variables of XLA, JAX, libtpu and NCCL; revision of git,
  with "+changes" and a digest of them where the tree is not clean, "" outside of git;
  data, as of `data_digest`.
  """
  flags = {
    name: without_folders(value)
    for name, value in sorted(os.environ.items())
    if _FLAGS.fullmatch(name) and not _PLACES.fullmatch(name)
  }
  return {
    **describe(),
    "processes": jax.process_count(),
    "flags": flags,
    "revision": revision(),
    "data": data_digest(config),
  }


def revision(folder: str | None = None) -> str:
  """Returns the commit of the code, with a digest of what was changed since."""
  where = folder or str(pathlib.Path(__file__).resolve().parents[1])

  def git(*arguments: str) -> bytes:
    command = ["git", "-C", where, *arguments]
    return subprocess.run(command, capture_output=True, check=True, timeout=30).stdout

  try:
    commit = git("rev-parse", "HEAD").decode().strip()
    changes = git("diff", "HEAD")
  except (OSError, subprocess.SubprocessError):
    return ""
  if not changes:
    return commit
  return f"{commit}+changes.{hashlib.sha256(changes).hexdigest()[:12]}"


def data_digest(config: Any) -> dict[str, Any]:
  """Returns what identifies the training data, without reading it.

  Keys: settings, a digest of config.data's source, options and split; files, how many
  the options name, and a digest of their names and, on a disk, sizes; manifests, path
  -> SHA-256 of each manifest.json (of tools.prepare_data) beside them, which holds
  theirs.
  """
  data = config.data
  options = dict(data.options)
  told = [data.source, options, data.split]
  found: dict[str, Any] = {"settings": _sha(json.dumps(told, default=str).encode())}
  listed, manifests = [], {}
  for pattern in _patterns(options, data.split):
    path = epath.Path(pattern)
    inside = path.is_dir()
    files = () if inside else sorted(path.parent.glob(path.name))
    # In a bucket each size is a request.
    sized = "://" not in pattern
    listed += [f"{f.name} {f.stat().length if sized else ''}" for f in files]
    manifest = (path if inside else path.parent) / "manifest.json"
    if manifest.exists():
      name = f"{manifest.parent.name}/{manifest.name}"
      manifests[name] = hashlib.sha256(manifest.read_bytes()).hexdigest()
  if listed:
    found["files"] = f"{len(listed)}, {_sha('|'.join(listed).encode())}"
  return found | ({"manifests": manifests} if manifests else {})


def _patterns(options: dict[str, Any], split: str) -> list[str]:
  """Returns the paths and globs that a source's options name."""
  found: list[str] = []
  for key in _FILES:
    value = options.get(key) or ()
    found += [value] if isinstance(value, str) else map(str, value)
  return [pattern.replace("{split}", split) for pattern in found]


def _sha(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:16]


def without_folders(argument: str) -> str:
  """Returns a command's argument without the folders of absolute paths.

  Where a machine keeps its runs says nothing to those who read the figures elsewhere.
  """
  return re.sub(r"(?<![\w.:/])/(?:[^\s/=]+/)+", "", argument)


def write(workdir: str, config: Any = None) -> list[str]:
  """Writes environment.json into a workdir; returns how it differs from the last one.

  What a resumed run finds there stays under "earlier", if it is not the same.

  Args:
    workdir: of the run.
    config: for `fingerprint`; without it only `describe` is written.
  """
  now: dict[str, Any] = describe() if config is None else fingerprint(config)
  before = read(workdir)
  earlier = before.pop("earlier", [])
  changed = [key for key in _SAME if key in before and before[key] != now.get(key)]
  if changed:
    earlier.append(before)
  if earlier:
    now["earlier"] = earlier
  path = epath.Path(workdir) / "environment.json"
  path.write_text(json.dumps(now, indent=1))
  return [
    f"another {key} than before: {before[key]}, now {now[key]}" for key in changed
  ]


def read(workdir: str) -> dict[str, Any]:
  """Returns what `write` wrote, or {} where there is none."""
  path = epath.Path(workdir) / "environment.json"
  return json.loads(path.read_text()) if path.exists() else {}
