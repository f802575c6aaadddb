"""Files that several processes may make at once: each appears whole, or not at all."""

import os
import uuid

from etils import epath


def write(path: str, data: bytes) -> None:
  """Writes `data` to `path`, in one step after it is all there; replaces a file."""
  target = epath.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  part = target.parent / f"{target.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.part"
  part.write_bytes(data)
  part.replace(target)
