"""A bound on a step's time from its FLOPs, its memory traffic and its collectives.

  step = max(compute, memory, collectives, max(compute, memory) + exposed)

compute: products of matrices at their peak; memory: bytes moved at the full rate;
collectives: bytes over the links that the group can use. All at 100 %, so that the step
is a lower bound and the MFU an upper one: real programs reach some share of each.
A collective that the compiler made asynchronous hides behind what runs until it ends,
at most as long as that takes by the same rates; nothing else is hidden.
"""

from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any

import numpy as np

from tools.hlo_collectives import Collective
from training.chips import Chip


@dataclasses.dataclass(frozen=True)
class Links:
  """Where the devices of a mesh stand, in its flattened order.

  Attributes:
    coords: int[devices, torus dimensions].
    wraps: for each dimension, whether its ends are joined.
  """

  coords: np.ndarray
  wraps: tuple[bool, ...]

  @classmethod
  def of(cls, devices: Sequence[Any], torus: int) -> "Links":
    """Reads the coordinates of described devices.

    A ring closes where a dimension has 16 chips (2-D) or a multiple of 4 (3-D).
    """
    coords = np.array([d.coords[:torus] for d in devices])
    extent = coords.max(axis=0) + 1
    wraps = tuple(bool(n == 16 if torus == 2 else n % 4 == 0) for n in extent)
    return cls(coords, wraps)


@dataclasses.dataclass(frozen=True)
class Switch:
  """Devices that a switch joins, those of a host each.

  Attributes:
    hosts: int[devices], in the flattened order of a mesh.
  """

  hosts: np.ndarray

  @classmethod
  def of(cls, devices: Sequence[Any]) -> "Switch":
    """Reads the hosts of described devices."""
    return cls(np.array([d.process_index for d in devices]))


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of one step, and what they come from."""

  compute: float
  memory: float
  collectives: float
  exposed: float

  @property
  def step(self) -> float:
    """The bound; see the module."""
    busy = max(self.compute, self.memory)
    return max(busy + self.exposed, self.collectives)

  @property
  def limit(self) -> str:
    """Which of the three the step mostly waits for."""
    parts = {
      "compute": self.compute,
      "memory": self.memory,
      "collectives": self.collectives,
    }
    return max(parts, key=parts.__getitem__)


def estimate(
  flops: float,
  traffic: float,
  collectives: Iterable[Collective],
  chip: Chip,
  links: Links | Switch,
) -> Estimate:
  """Returns the bound.

  Args:
    flops: that one device executes in a step.
    traffic: bytes that one device moves from and to its memory in a step.
    collectives: of a step.
    chip: the device.
    links: how the devices are joined.
  """
  found = [(c, c.times * seconds(c, chip, links)) for c in collectives]
  return Estimate(
    compute=flops / chip.flops,
    memory=traffic / chip.hbm_rate,
    collectives=sum(s for _, s in found),
    exposed=sum(max(s - c.times * hidden(c, chip), 0.0) for c, s in found),
  )


def hidden(c: Collective, chip: Chip) -> float:
  """Returns the seconds that other work takes while a collective is under way."""
  work = c.meanwhile or ()
  return sum(max(flops / chip.flops, size / chip.hbm_rate) for flops, size in work)


def seconds(c: Collective, chip: Chip, links: Links | Switch) -> float:
  """Returns the seconds of one collective with the links to itself.

  By a switch, see `_switched`; else:

  Gathers and sums go round rings: over both links of each torus dimension that the
  group spans, over one where its ends are not joined. An all-to-all is held up by the
  middle of its longest dimension: of n devices half send half their bytes to the other
  half, over one link, or two of a ring. A permutation takes one link at a time. What
  goes on between slices takes the network.
  """
  if isinstance(links, Switch):
    return _switched(c, chip, links.hosts)
  if c.axes == ("slices",):
    return c.bytes / chip.network
  if c.kind == "collective-permute":
    pairs = links.coords[np.asarray(c.groups)]  # [pairs, 2, dimensions]
    return c.bytes * _distance(pairs[:, 0], pairs[:, 1], links).max() / chip.link
  spans = _spans(links.coords[np.asarray(c.groups[0])], links)
  if c.kind == "all-to-all":
    middle = max((n / (8 if ring else 4) for n, ring in spans), default=0.5)
    return c.bytes * middle / chip.link
  ways = sum(1 + ring for _, ring in spans) or 1
  return c.bytes / (ways * chip.link)


def _switched(c: Collective, chip: Chip, hosts: np.ndarray) -> float:
  """Returns the seconds of a collective of devices that a switch or a network joins.

  All that a device sends takes its link. What a host lacks comes in once, by the
  network cards of those of its devices that take part, at the same time; of an
  all-to-all each device needs something else.
  """
  inside = c.bytes / chip.link
  of = hosts[np.asarray(c.groups)]
  if (of == of[:, :1]).all():
    return inside
  if c.kind == "collective-permute":
    return c.bytes / chip.network
  n, each = of.shape[1], np.unique(of[0], return_counts=True)[1].min()
  share = (n - each) / (n - 1) / (1 if c.kind == "all-to-all" else each)
  return max(inside, share * c.bytes / chip.network)


def _spans(coords: np.ndarray, links: Links) -> list[tuple[int, bool]]:
  """Returns (chips, whether they close a ring) of each dimension that a group spans."""
  found = []
  for x, extent, wraps in zip(coords.T, _extent(links), links.wraps, strict=True):
    n = int(x.max() - x.min()) + 1
    # Every second chip of a ring shares all of its links with the other half.
    ring = bool(wraps and 2 * n > extent)
    if n > 1:
      found.append((int(extent) if ring else n, ring))
  return found


def _extent(links: Links) -> np.ndarray:
  return links.coords.max(axis=0) + 1


def _distance(a: np.ndarray, b: np.ndarray, links: Links) -> np.ndarray:
  """Returns the links between a and b, coordinates int[..., dimensions]."""
  apart = np.abs(a - b)
  around = np.minimum(apart, _extent(links) - apart)
  return np.where(links.wraps, around, apart).sum(axis=-1)
