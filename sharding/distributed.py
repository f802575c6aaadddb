"""Several processes as one run: they meet, and when one is lost the others end.

On a laptop all of this does nothing; sharding/launch.py says what makes it do more.
"""

import atexit
from collections.abc import Iterator
import contextlib
import os
import socket
import sys
import threading
import time
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from sharding.launch import Launch, detect
from sharding.watch import LOST, Watch

# JAX's own timeout aborts the process (exit 134) with a C++ stack trace. Ours comes
# first, with words; JAX's stays behind it as a backstop.
_GRACE_S = 60
_MEET_S = 15.0  # for the watch to find process 0, once JAX has
_BLAME_S = 3.0  # after an error: was it a peer's, that the watch is about to name?
_END_S = 20.0  # after an error: for the interpreter to end by itself

_watch: Watch | None = None


class Apart(RuntimeError):
  """The processes did not meet; `status` is the exit status of this one."""

  def __init__(self, text: str, status: int = LOST):
    super().__init__(text)
    self.status = status


def initialize(join_s: float = 300, lost_s: float = 60) -> None:
  """Joins this process to its peers; does nothing where there are none.

  Call it before anything else touches a device. Safe to call twice. CPU processes talk
  through gloo, JAX's default. Enclose what follows in `together()`.

  Args:
    join_s: config.hosts.join_s, seconds to wait for all processes.
    lost_s: config.hosts.lost_s, seconds of silence after which a process is lost.

  Raises:
    ValueError: an incomplete or contradictory environment.
    Apart: the peers did not meet; names those that never came where the launch is by
      environment variables, else the address, the process and what to check.
  """
  global _watch
  if jax.distributed.is_initialized():
    return
  launch = detect(os.environ)
  if launch is None:
    return
  watch = _watching(launch, lost_s)
  failure = _within(join_s, lambda: _join(launch, join_s, lost_s), watch)
  if failure is None:
    logging.info("process %d of %d joined", jax.process_index(), jax.process_count())
    _watch = _meet(launch, watch, lost_s)
    return
  if launch.launcher == "tpu" and isinstance(failure, ValueError):
    # A TPU machine outside any pod: JAX found no cluster. A real pod would not get past
    # the TPU runtime alone, so this cannot silently train on a part of it.
    logging.info("no TPU pod detected (%s): running as a single process", failure)
    return
  raise _apart(launch, watch, join_s, failure) from failure


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Encloses what the processes do together: one that is lost or fails ends them all.

  A lost process is named on stderr and the exit status is LOST: run the command again.
  An error here is told to the others, which end with its status, instead of waiting for
  this one in their next collective.
  """
  watch = _watch
  if watch is None:
    yield
    return
  threading.Thread(target=_obey, args=(watch,), daemon=True).start()
  try:
    yield
  except BaseException as e:
    # A lost peer shows first as an error of a collective: its name is worth the wait.
    if isinstance(e, Exception) and watch.decided.wait(_BLAME_S):
      time.sleep(_END_S)  # _obey ends this process
    status = getattr(e, "status", 1)
    words = str(e) if hasattr(e, "status") else f"{type(e).__name__}: {e}"
    with contextlib.suppress(Exception):
      watch.fail(words[:2000], status)
    end_soon(status)
    raise
  with contextlib.suppress(Exception):
    watch.leave()


def _join(launch: Launch, join_s: float, lost_s: float) -> None:
  jax.distributed.initialize(
    coordinator_address=launch.address,
    num_processes=launch.count if launch.address else None,
    process_id=launch.index if launch.address else None,
    cluster_detection_method="deactivate" if launch.address else None,
    initialization_timeout=int(join_s) + _GRACE_S,
    heartbeat_timeout_seconds=int(lost_s) + _GRACE_S,
  )


def _within(seconds: float, fn: Any, watch: Watch | None) -> Exception | None:
  """Runs `fn` in a thread; returns its exception, or TimeoutError if it is not back."""
  failures: list[Exception] = []

  def run():
    try:
      fn()
    except Exception as error:
      failures.append(error)

  # Daemon: the readable error must be able to end the process while JAX still waits.
  thread = threading.Thread(target=run, name="jax.distributed.initialize", daemon=True)
  thread.start()
  end = time.monotonic() + seconds
  while thread.is_alive() and time.monotonic() < end:
    thread.join(0.05)
    if watch is not None and watch.verdict is not None:
      return Apart(watch.verdict.text, watch.verdict.status)
  if thread.is_alive():
    return TimeoutError(f"not all processes met within {seconds:g} s")
  return failures[0] if failures else None


def _watching(launch: Launch, lost_s: float) -> Watch | None:
  """Returns a watch that calls the roll while JAX waits, where the numbers are known.

  If its port is taken, `_meet` says which one process 0 has instead.
  """
  if launch.roll is None or launch.index is None or launch.count is None:
    return None
  host, _, port = launch.roll.rpartition(":")
  watch = Watch(launch.index, launch.count, lost_s)
  if launch.index == 0:
    watch.listen(int(port))
  else:
    watch.connect(host.strip("[]"), int(port))
  return watch


def _meet(launch: Launch, watch: Watch | None, lost_s: float) -> Watch:
  """Returns the watch of this process, connected to that of process 0."""
  index = jax.process_index()
  if watch is None:
    watch = Watch(index, jax.process_count(), lost_s)
  if jax.default_backend() == "cpu":
    _introduce()
  place = np.zeros(256, np.uint8)
  if index == 0:
    host = launch.roll.rpartition(":")[0].strip("[]") if launch.roll else _host()
    text = f"{host} {watch.port or watch.listen(0)}".encode()
    place[: len(text)] = np.frombuffer(text, np.uint8)
  told = bytes(np.asarray(multihost_utils.broadcast_one_to_all(place)))
  host, port = told.rstrip(b"\0").decode().split()
  if index:
    watch.connect(host, int(port))
  if not watch.connected.wait(_MEET_S):
    logging.warning(
      "process %d cannot reach %s:%s, where process 0 watches over the hosts: a lost "
      "one will be noticed after %g s only, by JAX, which does not name it",
      *(index, host, port, lost_s + _GRACE_S),
    )
  return watch


def _introduce() -> None:
  """Has all devices meet in a collective now.

  gloo gives them 30 s to find each other in their first one, which in the train step
  would have to cover how much longer one host compiles than another.
  """
  mesh = jax.make_mesh((jax.device_count(),), ("all",))
  split = NamedSharding(mesh, PartitionSpec("all"))
  rows = np.ones(jax.local_device_count(), np.float32)
  whole = jax.make_array_from_process_local_data(split, rows)
  jax.block_until_ready(jax.jit(jnp.sum)(whole))


def _host() -> str:
  """Returns the address by which others reach this host."""
  with (
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s,
    contextlib.suppress(OSError),
  ):
    s.connect(("192.0.2.1", 9))  # sends nothing: it asks for the route
    return s.getsockname()[0]
  return socket.gethostname()


def _obey(watch: Watch) -> None:
  """Ends this process once the watch has decided so, whatever it is doing."""
  watch.decided.wait()
  assert watch.verdict is not None
  text, status = watch.verdict.text, watch.verdict.status
  if status == LOST:
    text += (
      f". The other processes end as well, with exit status {LOST}. Run the same "
      "command again on every host to resume from the last checkpoint."
    )
  print(f"\nerror: {text}", file=sys.stderr, flush=True)
  _end(status)


def end_soon(status: int) -> None:
  """Has this process end once Python has said why, without a word of JAX's.

  JAX would wait, at the end of the interpreter, for peers that are gone.
  """
  atexit.register(_end, status)
  ending = threading.Timer(_END_S, _end, (status,))
  ending.daemon = True
  ending.start()


def _end(status: int) -> None:
  with contextlib.suppress(Exception):
    sys.stdout.flush()
    sys.stderr.flush()
  os._exit(status)


def _apart(
  launch: Launch, watch: Watch | None, join_s: float, failure: Exception
) -> Apart:
  """Returns why this process did not meet the others, and tells those that it met."""
  if isinstance(failure, Apart):
    apart = failure
  elif isinstance(failure, TimeoutError) and watch is not None and watch.absent():
    apart = Apart(_never_joined(launch, watch, join_s, failure))
  else:
    apart = Apart(_explain(launch, join_s, failure))
  if watch is not None:
    with contextlib.suppress(Exception):
      watch.fail(str(apart), apart.status)
      watch.close()
  return apart


def _never_joined(
  launch: Launch, watch: Watch, join_s: float, failure: Exception
) -> str:
  if not watch.connected.is_set():  # to process 0: nothing is known of the others
    return _explain(launch, join_s, failure)
  names = ", ".join(map(str, watch.absent()))
  here = ", ".join(f"{i} on {host}" for i, host in sorted(watch.joined.items()))
  return (
    f"process {names} of {watch.count} never joined within {join_s:g} s "
    f"(config.hosts.join_s). Joined: {here}. Look for the log of the missing: was "
    f"it started, and can it reach {launch.address or launch.roll}?"
  )


def _explain(launch: Launch, join_s: float, failure: Exception) -> str:
  address = launch.address or "found by the launcher"
  who = "?" if launch.index is None else launch.index
  of = "?" if launch.count is None else launch.count
  checks = [
    "every process was started, with the same address and number of processes and its "
    "own process id",
    "the host of process 0 can be reached from here and no firewall closes the port",
  ]
  if launch.address and launch.index != 0:
    heard = _listens(launch.address)
    checks.insert(
      0,
      f"something listens at {address}, so a peer is missing"
      if heard
      else f"nothing listens at {address}: process 0 is not running, ended, or has "
      "another address",
    )
  if any("_proxy" in key.lower() for key in os.environ):
    checks.append("*_proxy variables can make the connection hang: unset them")
  listed = "\n".join(f"  - {line}" for line in checks)
  return (
    f"process {who} of {of} could not join the others: coordinator {address}, launcher "
    f"{launch.launcher}, timeout {join_s:g} s.\n"
    f"{type(failure).__name__}: {failure}\nCheck:\n{listed}"
  )


def _listens(address: str) -> bool:
  host, _, port = address.rpartition(":")
  try:
    with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
      return True
  except OSError:
    return False
