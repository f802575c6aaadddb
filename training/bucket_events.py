"""TensorBoard's event files in a bucket, through etils as all else of the workdir.

tensorboardX has writers of its own for gs:// and s3://, which need the vendors'
clients; etils needs gcsfs or s3fs, as the rest of a run in a bucket does.
"""

import io

from etils import epath
from tensorboardX import record_writer

SCHEMES = ("gs", "s3")


def register() -> None:
  """Has tensorboardX write gs:// and s3:// paths through etils."""
  for scheme in SCHEMES:
    record_writer.register_writer_factory(scheme, _Factory())


class _Factory:
  """What tensorboardX asks for a file."""

  def open(self, path: str) -> "_File":
    return _File(path)

  def directory_check(self, path: str) -> None:
    """Makes nothing: a bucket has no folders."""


class _File:
  """An event file that is written as a whole at each flush: buckets cannot append."""

  def __init__(self, path: str):
    self._path = epath.Path(path)
    self._data = io.BytesIO()
    self._written = 0

  def write(self, data: bytes) -> None:
    """Keeps `data` until the next flush."""
    self._data.write(data)

  def flush(self) -> None:
    """Writes the file anew, if there is something new."""
    if self._data.tell() > self._written:
      self._path.write_bytes(self._data.getvalue())
      self._written = self._data.tell()

  def close(self) -> None:
    """Flushes."""
    self.flush()
