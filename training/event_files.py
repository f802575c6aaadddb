"""TensorBoard's event files where the disk may be full: training goes on without."""

from absl import logging
from tensorboardX import SummaryWriter


def board(folder: str, purge_step: int | None = None) -> SummaryWriter:
  """Returns tensorboardX's writer, made safe.

  Args:
    folder: of the event files.
    purge_step: from which step on TensorBoard forgets what earlier files say.
  """
  # No limit on the queue: where its reader has ended, adding would wait for ever.
  made = SummaryWriter(folder, purge_step=purge_step, flush_secs=30, max_queue=0)
  made.file_writer.event_writer = _Guarded(made.file_writer.event_writer)
  return made


class _Guarded:
  """An EventFileWriter that gives up, in words, once its files cannot be written.

  tensorboardX writes in a thread, which an error ends without a sign.
  """

  def __init__(self, inner):
    self._inner = inner
    self._given_up = False

  def add_event(self, event) -> None:
    """Adds an event, while there is somebody to write it."""
    if not self._given_up and not self._inner._worker.is_alive():
      self._give_up("its thread ended")
    if not self._given_up:
      self._inner.add_event(event)

  def flush(self) -> None:
    """Writes out what is held back."""
    if not self._given_up:
      try:
        self._inner.flush()
      except OSError as e:
        self._give_up(e)

  def close(self) -> None:
    """Flushes and closes."""
    self.flush()
    if not self._given_up:
      try:
        self._inner.close()
      except OSError as e:
        self._give_up(e)

  def get_logdir(self) -> str:
    """Returns the folder."""
    return self._inner.get_logdir()

  def _give_up(self, why) -> None:
    self._given_up = True
    self._inner._event_queue.cancel_join_thread()  # or the process would not end
    logging.warning(
      "TensorBoard's files cannot be written (%s): no more of them until the run is "
      "started again. metrics.jsonl has everything.",
      why,
    )
