"""The watch over a run's processes, several of them in this one."""

import contextlib
import socket
import time

import pytest

from sharding import watch


def free_port():
  with socket.socket() as s:
    s.bind(("", 0))
    return s.getsockname()[1]


@contextlib.contextmanager
def watches(count, here=None, lost_s=5.0):
  """Yields a Watch per process in `here`, all by default, met where process 0 is."""
  made = [watch.Watch(i, count, lost_s) for i in here or range(count)]
  port = made[0].listen(free_port())
  for one in made[1:]:
    one.connect("127.0.0.1", port)
  for one in made:
    assert one.connected.wait(5)
  try:
    yield made
  finally:
    for one in made:
      one.close()


def drop(one):
  """Closes a connection as the kernel does for a killed process."""
  one._loop.call_soon_threadsafe(one._writers[0].transport.abort)


def verdict(one, seconds=5):
  assert one.decided.wait(seconds), "nothing was decided"
  return one.verdict


def test_a_closed_connection_is_a_loss_that_all_hear_of():
  with watches(4) as made:
    drop(made[2])
    drop(made[3])
    for one in made[:2]:
      heard = verdict(one)
      assert heard.status == watch.LOST
      host = socket.gethostname()
      assert heard.text == (
        f"process 2 of 4 ({host}) was lost: its connection closed; "
        f"process 3 of 4 ({host}) was lost: its connection closed"
      )


def test_process_0_is_missed_too():
  with watches(3) as made:
    made[0].close = lambda close=made[0].close: None
    for writer in list(made[0]._writers.values()):
      made[0]._loop.call_soon_threadsafe(writer.transport.abort)
    assert "process 0 of 3" in verdict(made[1]).text


def test_silence_is_a_loss():
  with watches(2, lost_s=0.5) as made:
    time.sleep(1.2)
    assert not made[0].decided.is_set() and not made[1].decided.is_set()
    made[1]._loop.call_soon_threadsafe(time.sleep, 2)  # as a stopped process
    assert "process 1 of 2" in verdict(made[0]).text
    assert "silent for 0.5 s" in made[0].verdict.text


@pytest.mark.parametrize("fails", [0, 1])
def test_who_fails_tells_why_and_the_others_end_with_its_status(fails):
  with watches(3) as made:
    made[fails].fail("ValueError: too many dropped", 2)
    for one in made:
      if one is not made[fails]:
        heard = verdict(one)
        assert heard.status == 2
        assert f"process {fails} of 3" in heard.text
        assert heard.text.endswith("failed: ValueError: too many dropped")


def test_who_leaves_is_not_missed():
  with watches(3) as made:
    made[1].leave()
    drop(made[1])
    made[0].leave()
    time.sleep(1)
    assert not any(one.decided.is_set() for one in made)


def test_who_never_joined_is_known_to_all():
  with watches(4, here=(0, 2), lost_s=0.5) as made:
    time.sleep(0.3)  # a beat
    assert [one.absent() for one in made] == [[1, 3], [1, 3]]


def test_two_of_one_number():
  with watches(3, here=(0, 1)) as made:
    double = watch.Watch(1, 3, 5.0)
    double.connect("127.0.0.1", made[0].port)
    heard = verdict(double)
    assert heard.status == 2 and "two processes are numbered 1" in heard.text
    assert not made[0].decided.is_set()
    double.close()


def test_another_service_at_the_port_is_not_process_0():
  with socket.socket() as other, watches(2, here=(0,)) as made:
    other.bind(("127.0.0.1", 0))
    other.listen()
    member = watch.Watch(1, 2, 5.0)
    member.connect("127.0.0.1", other.getsockname()[1])
    connection, _ = other.accept()
    connection.sendall(b"220 mail.example ready\n")
    port = made[0].port
    member.connect("127.0.0.1", port)
    assert member.connected.wait(5)
    connection.close()
    member.close()


def test_a_taken_port_is_given_up_and_noise_is_ignored():
  with socket.socket() as other:
    other.bind(("", 0))
    other.listen()
    taken = other.getsockname()[1]
    first = watch.Watch(0, 2, 5.0)
    port = first.listen(taken)
    assert port != taken
    with socket.create_connection(("127.0.0.1", port)) as noise:
      noise.sendall(b"GET / HTTP/1.1\r\n\r\n")
      time.sleep(0.2)
    assert not first.decided.is_set() and first.absent() == [1]
    first.close()
