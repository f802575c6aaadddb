"""Where a run was made: devices and versions, for whoever reads its figures later."""

import importlib.metadata
import json
import os
import platform
import re
import sys

from etils import epath
import jax

PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


def describe() -> dict[str, str]:
  """Returns {"device", "versions", "command"} of this process."""
  devices = jax.devices()
  kind = devices[0].device_kind
  if kind == "cpu":
    kind = f"{platform.machine()} CPU, {os.cpu_count()} cores"
  found = [f"Python {platform.python_version()}"]
  for package in PACKAGES:
    try:
      found.append(f"{package} {importlib.metadata.version(package)}")
    except importlib.metadata.PackageNotFoundError:
      continue
  return {
    "device": f"{len(devices)} x {kind}",
    "versions": ", ".join(found),
    "command": " ".join(["python", *map(without_folders, sys.argv)]),
  }


def without_folders(argument: str) -> str:
  """Returns a command's argument without the folders of absolute paths.

  Where a machine keeps its runs says nothing to those who read the figures elsewhere.
  """
  return re.sub(r"(?<![\w.:/])/(?:[^\s/=]+/)+", "", argument)


def write(workdir: str) -> None:
  """Writes environment.json into a workdir."""
  text = json.dumps(describe(), indent=1)
  (epath.Path(workdir) / "environment.json").write_text(text)


def read(workdir: str) -> dict[str, str]:
  """Returns what `write` wrote, or {} where there is none."""
  path = epath.Path(workdir) / "environment.json"
  return json.loads(path.read_text()) if path.exists() else {}
