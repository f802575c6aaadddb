"""Who of a run's processes is there, and which one was lost: heartbeats over TCP.

JAX's own service ends the others with a C++ stack trace, a heartbeat timeout after one
of them died, and does not say who never came. Here process 0 listens and the others
keep a connection to it: a killed process closes its connection at once, a host without
power or network falls silent. Messages are lines of JSON; they only ever end a run, as
anybody who reaches the port of JAX's service can.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
import dataclasses
import json
import socket
import threading
from typing import Any

LOST = 75  # exit status: EX_TEMPFAIL of sysexits.h; starting again may well help
_SETTLE_S = 0.5  # after a loss: hosts lost together are named together
_SEND_S = 3.0  # that the last words to the others may take
_REACH_S = 5.0  # for one try to find process 0
_LONGEST = 2**20  # bytes of a message: the names of some ten thousand hosts
# TimeoutError is one of them; what no JSON is, or too long, is a ValueError.
_NETWORK = (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError)


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Why this process has to end, and its exit status."""

  text: str
  status: int


class Watch:
  """One process's part of the watch; all of it runs in a daemon thread.

  Attributes:
    joined: process -> host, of those that were there so far.
    port: where process 0 listens, 0 elsewhere.
    verdict: why to end, once `decided` is set; never unset again.
  """

  def __init__(self, index: int, count: int, lost_s: float):
    """Starts the thread; process 0 still has to `listen`, the others to `connect`.

    Args:
      index: of this process.
      count: of processes.
      lost_s: seconds of silence after which a process is lost.
    """
    self.index, self.count, self._lost_s = index, count, lost_s
    self.joined: dict[int, str] = {index: socket.gethostname()} if index == 0 else {}
    self.decided, self.connected = threading.Event(), threading.Event()
    self.verdict: Verdict | None = None
    self.port = 0
    self._lost: dict[int, str] = {}
    self._writers: dict[int, asyncio.StreamWriter] = {}
    self._address: tuple[str, int] | None = None
    self._leaving = False
    self._tasks: set[asyncio.Task] = set()
    self._server: asyncio.Server | None = None
    self._loop = asyncio.new_event_loop()
    self._thread = threading.Thread(
      target=self._loop.run_forever, name="concord-watch", daemon=True
    )
    self._thread.start()

  def listen(self, port: int) -> int:
    """Process 0: waits for the others; returns the port, another if it is taken."""

    async def start() -> int:
      sock = _listening(port)
      self._server = await asyncio.start_server(self._member, sock=sock, limit=_LONGEST)
      self._go(self._beats(lambda: {"joined": self.joined}))
      return sock.getsockname()[1]

    self.connected.set()
    self.port = self._wait(start())
    return self.port

  def connect(self, host: str, port: int) -> None:
    """The others: finds process 0, again if it was sought elsewhere; does not wait."""
    first, self._address = self._address is None, (host, port)
    if first:
      self._loop.call_soon_threadsafe(lambda: self._go(self._follow()))

  def leave(self) -> None:
    """Ends well: the others do not take it for a loss."""
    self._last_words({"bye": True})

  def fail(self, text: str, status: int) -> None:
    """Tells the others that this process ends by an error, and with what status."""
    self._last_words({"failed": text, "status": status})

  def close(self) -> None:
    """Stops the thread."""

    async def stop() -> None:
      if self._server is not None:
        self._server.close()
      for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
      await asyncio.sleep(0.01)  # they end
      for writer in self._writers.values():
        writer.close()
      await asyncio.sleep(0.01)

    self._leaving = True
    self._wait(stop())
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join(_SEND_S)
    self._loop.close()

  def absent(self) -> list[int]:
    """Returns the processes that never joined, as far as process 0 has told."""
    return sorted(set(range(self.count)) - set(self.joined))

  def name(self, index: int) -> str:
    """Returns "process 2 of 4 (its host)"."""
    host = f" ({self.joined[index]})" if index in self.joined else ""
    return f"process {index} of {self.count}{host}"

  # What follows runs in the thread.

  async def _member(self, reader, writer) -> None:
    """Process 0: one connection, until it says goodbye or is lost."""
    index = -1
    try:
      hello = await self._read(reader)
      asked = int(hello["index"])
      if not 0 < asked < self.count or asked in self._writers:
        there = self.joined.get(asked, "nobody")
        await self._send(writer, {"refused": f"{there} is process {asked} already"})
        return
      index = asked
      self.joined[index], self._writers[index] = str(hello["host"])[:99], writer
      await self._send(writer, {"joined": self.joined})
      while "bye" not in (message := await self._read(reader)):
        if "failed" in message:
          self._go(self._decide(self._failed(index, message)))
          return
    except TimeoutError:
      self._lose(index, f"it was silent for {self._lost_s:g} s")
    except _NETWORK:
      self._lose(index, "its connection closed")
    finally:
      if index >= 0:
        del self._writers[index]
      writer.close()

  async def _follow(self) -> None:
    """The others: hears process 0 until it says goodbye or is lost."""
    reader, writer, message = await self._reach()
    self._writers[0] = writer
    self.connected.set()
    self._go(self._beats(dict))
    try:
      while "bye" not in message:
        if verdict := self._heard(message):
          return self._end(verdict)
        self.joined = {int(i): str(h) for i, h in message["joined"].items()}
        message = await self._read(reader)
    except TimeoutError:
      self._lose(0, f"it was silent for {self._lost_s:g} s")
    except _NETWORK:
      self._lose(0, "its connection closed")

  async def _reach(self):
    """Returns (reader, writer, first message) of process 0, however long it takes."""
    hello = {"index": self.index, "host": socket.gethostname()}
    while True:
      assert self._address is not None
      writer = None
      try:
        async with asyncio.timeout(_REACH_S):
          reader, writer = await asyncio.open_connection(*self._address, limit=_LONGEST)
          await self._send(writer, hello)
          return reader, writer, await self._read(reader)
      except _NETWORK:  # it is not up yet, or another service is at that port
        if writer is not None:
          writer.close()
        await asyncio.sleep(0.2)

  def _heard(self, message: Mapping[str, Any]) -> Verdict | None:
    if "refused" in message:
      said = f"two processes are numbered {self.index}: {message['refused']}"
      return Verdict(said, 2)
    if "failed" in message:
      return self._failed(0, message)
    if "verdict" in message:
      return Verdict(str(message["verdict"]), int(message["status"]))
    return None

  def _failed(self, index: int, message: Mapping[str, Any]) -> Verdict:
    text, status = str(message["failed"]), int(message["status"])
    # LOST: it does not go on for want of another, whom the text names.
    said = text if status == LOST else f"{self.name(index)} failed: {text}"
    return Verdict(said, status)

  async def _beats(self, message: Callable[[], Mapping[str, Any]]) -> None:
    while True:
      for writer in list(self._writers.values()):
        await self._send(writer, message())
      await asyncio.sleep(min(self._lost_s / 5, 5.0))

  async def _read(self, reader) -> dict[str, Any]:
    async with asyncio.timeout(self._lost_s):
      line = await reader.readline()
    if not line.endswith(b"\n"):
      raise EOFError
    message = json.loads(line)
    if not isinstance(message, dict):
      raise ValueError(f"no message: {line[:80]!r}")
    return message

  async def _send(self, writer, message: Mapping[str, Any]) -> None:
    try:
      writer.write(json.dumps(message).encode() + b"\n")
      async with asyncio.timeout(_SEND_S):
        await writer.drain()
    except _NETWORK:
      pass  # the reader of that connection finds out

  def _lose(self, index: int, why: str) -> None:
    if index >= 0 and not self._leaving:
      self._lost[index] = why
      if len(self._lost) == 1:
        self._go(self._settle())

  async def _settle(self) -> None:
    await asyncio.sleep(_SETTLE_S if self.index == 0 else 0)
    lost = [f"{self.name(i)} was lost: {why}" for i, why in sorted(self._lost.items())]
    await self._decide(Verdict("; ".join(lost), LOST))

  async def _decide(self, verdict: Verdict) -> None:
    message = {"verdict": verdict.text, "status": verdict.status}
    writers = list(self._writers.values())
    await asyncio.gather(*(self._send(w, message) for w in writers))
    self._end(verdict)

  def _end(self, verdict: Verdict) -> None:
    if self.verdict is None and not self._leaving:
      self.verdict = verdict
      self.decided.set()

  def _last_words(self, message: Mapping[str, Any]) -> None:
    async def send() -> None:
      self._leaving = True
      writers = list(self._writers.values())
      await asyncio.gather(*(self._send(w, message) for w in writers))

    self._wait(send())

  def _go(self, coroutine: Coroutine[Any, Any, Any]) -> None:
    task = self._loop.create_task(coroutine)
    self._tasks.add(task)  # the loop itself keeps weak references only
    task.add_done_callback(self._tasks.discard)

  def _wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
    future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
    return future.result(timeout=2 * _SEND_S)


def _listening(port: int) -> socket.socket:
  """Returns a socket that listens on all addresses, at another port if it is taken."""
  both = socket.has_dualstack_ipv6()
  family = socket.AF_INET6 if both else socket.AF_INET
  try:
    return socket.create_server(("", port), family=family, dualstack_ipv6=both)
  except OSError:
    return socket.create_server(("", 0), family=family, dualstack_ipv6=both)
