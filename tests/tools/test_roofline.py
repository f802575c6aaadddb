import types

import pytest

from tools import roofline
from tools.hlo_collectives import Collective
from training import chips

V5E = chips.find("TPU v5 lite")


def line(n):
  """n devices in a row of a v5e."""
  devices = [types.SimpleNamespace(coords=(i, 0, 0)) for i in range(n)]
  return roofline.Links.of(devices, torus=2)


def collective(kind, n, size, **changes):
  groups = (tuple(range(n)),)
  options = dict(kind=kind, shape="", bytes=size, times=1, axes=("data",), source="")
  return Collective(**(options | dict(groups=groups) | changes))


@pytest.mark.parametrize(
  ("kind", "n", "seconds"),
  [
    ("all-gather", 16, 1.0),  # a closed ring: two links
    ("all-gather", 8, 2.0),  # a row: one
    ("all-reduce", 16, 1.0),
    ("all-to-all", 16, 4.0),  # the middle: half of 16 send half of theirs over 2 links
    ("all-to-all", 4, 2.0),
  ],
)
def test_seconds_of_collectives(kind, n, seconds):
  size = int(2 * V5E.link)
  assert roofline.seconds(collective(kind, n, size), V5E, line(n)) == seconds


def test_a_permutation_takes_as_many_links_as_its_way_is_long():
  size = int(V5E.link)
  c = collective("collective-permute", 2, size, groups=((0, 1), (0, 3)))
  assert roofline.seconds(c, V5E, line(8)) == 3.0
  c = collective("collective-permute", 2, size, groups=((0, 15),))
  assert roofline.seconds(c, V5E, line(16)) == 1.0  # round the back


def test_slices_are_joined_by_the_network():
  c = collective("all-reduce", 2, int(V5E.network), axes=("slices",), groups=())
  assert roofline.seconds(c, V5E, line(4)) == 1.0


def test_only_asynchronous_collectives_hide_and_no_longer_than_there_is_work():
  size = int(2 * V5E.link)  # a second each
  # Half a second of products, a second of memory: they are one after the other.
  work = (V5E.flops / 2, 0.0), (V5E.flops / 2, V5E.hbm_rate)
  hidden = collective("all-gather", 16, size, meanwhile=work)
  shown = collective("all-gather", 16, size, times=2)
  bound = roofline.estimate(
    4 * V5E.flops, 3 * V5E.hbm_rate, [hidden, shown], V5E, line(16)
  )
  assert (bound.compute, bound.memory) == (4.0, 3.0)
  assert (bound.collectives, bound.exposed) == (3.0, 2.0)
  assert (bound.step, bound.limit) == (6.0, "compute")
  part = collective("all-gather", 16, size, times=3, meanwhile=work[:1])
  bound = roofline.estimate(V5E.flops, 0.0, [part], V5E, line(16))
  assert (bound.collectives, bound.exposed) == (3.0, 1.5)


@pytest.mark.parametrize(
  ("kind", "hosts", "each", "seconds"),
  [
    ("all-reduce", 1, 8, 1.0),
    # 8 of 16 shards come in by 8 cards, a byte of each for 15 that the link carries.
    ("all-gather", 2, 8, 1.0),
    ("all-gather", 2, 2, 9 * 2 / 3 / 2),
    ("all-reduce", 4, 1, 9.0),
    # 8 of 15 parts are for the other host.
    ("all-to-all", 2, 8, 9 * 8 / 15),
  ],
)
def test_a_switch_joins_a_host_and_the_network_hosts(kind, hosts, each, seconds):
  h100 = chips.find("NVIDIA H100 80GB HBM3")
  n = hosts * each
  devices = [types.SimpleNamespace(process_index=i // each) for i in range(n)]
  switch = roofline.Switch.of(devices)
  c = collective(kind, n, int(h100.link))
  assert roofline.seconds(c, h100, switch) == pytest.approx(seconds)
  pair = collective("collective-permute", 2, int(h100.link), groups=((0, n - 1),))
  times = 1.0 if hosts == 1 else h100.link / h100.network
  assert roofline.seconds(pair, h100, switch) == times
