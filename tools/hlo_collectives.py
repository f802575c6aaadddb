"""The collectives of a compiled step: kind, bytes, mesh axes, how often.

Pure: HLO text in, a list out. Bytes are what ONE chip must send in one step, by the
cheapest algorithm there is (rings): of n chips that hold s bytes each, an all-gather
sends (n - 1) s, a reduce-scatter and an all-to-all s (n - 1) / n, an all-reduce twice
that, a permutation s. Layout padding is not counted.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import math
import re

import numpy as np

from tools import hlo_overlap, hlo_text
from tools.hlo_overlap import Work
from tools.hlo_text import Instruction, Module, Run

KINDS = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
# The TPU compiler cuts an asynchronous collective into a start, parts that are woven
# into the matmuls around it, and an end: each part repeats the instruction, and all of
# one collective share this id.
_CHAIN = re.compile(r'frontend_attributes=\{[^}]*chain_id="(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_BETWEEN_SLICES = re.compile(r'_xla_megascale_transfer_type="(\w+)"')
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")
_AXIS = re.compile(r"'([^']+)'(?::\((\d+)\)(\d+))?(?:=(\d+))?")
_LISTS = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{((?:\{[\d,]*\},?)*)\}")
Groups = tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of the program.

  Attributes:
    kind: one of KINDS.
    shape: of what one chip puts in, e.g. "bf16[2,64,512]".
    bytes: that one chip sends each time.
    times: a step.
    axes: of the mesh, those along which it exchanges.
    groups: of devices, as places in the flattened mesh; pairs for a permutation.
    source: the JAX operation, as far as the compiler knows it.
    meanwhile: what else runs until it ends; None if the program waits for it.
    known: False if it stands in a loop that does not tell how often it turns.
  """

  kind: str
  shape: str
  bytes: int
  times: int
  axes: tuple[str, ...]
  groups: Groups
  source: str
  meanwhile: Work | None = None
  known: bool = True

  @property
  def asynchronous(self) -> bool:
    """Whether the program goes on after its start."""
    return self.meanwhile is not None

  @property
  def total(self) -> int:
    """Bytes that one chip sends in a step."""
    return self.bytes * self.times


def find(module: Module, mesh: Mapping[str, int], slices: int = 1) -> list[Collective]:
  """Returns the collectives of a step.

  Args:
    module: from `hlo_text.parse`.
    mesh: axis -> size, outermost first; devices are numbered in this order.
    slices: that the devices stand in. What goes on between them has the axis "slices"
      and no groups: hosts exchange what a device hands them.
  """
  found = []
  devices = math.prod(mesh.values())
  for run in hlo_text.runs(module):
    for kind, i, arrays, parts in _unique(module, run.computation):
      between = i.opcode == "send"
      groups = () if between else parse_groups(i.rest, devices)
      n = slices if between else len(groups[0]) if groups else 1
      if n < 2:
        continue  # among itself
      size = sum(a.bytes for a in arrays)
      text = " ".join(f"{a.dtype}{list(a.dims)}".replace(" ", "") for a in arrays[:2])
      found.append(
        Collective(
          kind=kind,
          shape=text + (f" and {len(arrays) - 2} more" if len(arrays) > 2 else ""),
          bytes=round(_sent(kind, size, n)),
          times=run.times,
          axes=("slices",) if between else axes_of(groups, mesh),
          groups=groups,
          source=hlo_text.source(i),
          meanwhile=_meanwhile(module, run, i, parts),
          known=run.known,
        )
      )
  return found


def parse_groups(text: str, devices: int) -> Groups:
  """Returns the groups of devices, or the pairs of a permutation, of an instruction.

  Understands lists `{{0,1},{2,3}}`, iota `[2,4]<=[4,2]T(1,0)`, meshes
  `mesh['a'=2,'b'=4] {'a'}`, and no groups: all devices.
  """
  if pairs := _PAIRS.search(text):
    return tuple(g for g in _lists(pairs[1]) if g[0] != g[1])
  if iota := _IOTA.search(text):
    shape, dims = _ints(iota[1]), _ints(iota[2])
    ids = np.arange(math.prod(dims)).reshape(dims)
    ids = ids.transpose(_ints(iota[3])) if iota[3] else ids
    return _rows(ids.reshape(shape))
  if mesh := _MESH.search(text):
    return _mesh_groups(mesh[1], mesh[2])
  if (lists := _LISTS.search(text)) and lists[1]:
    return _lists(lists[1])
  return (tuple(range(devices)),)


def axes_of(groups: Groups, mesh: Mapping[str, int]) -> tuple[str, ...]:
  """Returns the mesh axes along which the members of a group differ."""
  places = np.asarray(np.unravel_index(np.asarray(groups), tuple(mesh.values())))
  differ = (places != places[..., :1]).any(axis=(1, 2))  # [axis, group, member]
  return tuple(name for name, d in zip(mesh, differ, strict=True) if d)


def by_kind_and_axes(
  collectives: Iterable[Collective],
) -> dict[tuple[str, str], tuple[int, int]]:
  """Returns (kind, "data+expert") -> (how many a step, bytes one chip sends)."""
  out: dict[tuple[str, str], tuple[int, int]] = {}
  for c in collectives:
    key = c.kind, "+".join(c.axes)
    count, size = out.get(key, (0, 0))
    out[key] = count + c.times, size + c.total
  return dict(sorted(out.items(), key=lambda item: -item[1][1]))


def _unique(
  module: Module, computation: str
) -> Iterator[tuple[str, Instruction, Sequence[hlo_text.Array], Sequence[str]]]:
  """Yields (kind, instruction, what goes in, parts) of each collective.

  Of one in parts, the first part, with the names of the instructions that they are in.
  """
  parts: dict[tuple[str, ...], list[str]] = {}
  found = []
  for outer, i, inside, scattered in _instructions(module, computation):
    kind = i.opcode.removesuffix("-start")
    if i.opcode == "send" and (between := _BETWEEN_SLICES.search(i.rest)):
      kind = between[1].lower().replace("_", "-")
    if kind == "ragged-all-to-all":
      kind = "all-to-all"
    if kind not in KINDS:
      continue
    names = []
    if key := _part(i):
      names = parts.setdefault((kind, *key), [])
      names.append(outer.name)
      if len(names) > 1:
        continue
    first = i.opcode == "send" or kind == "collective-permute"
    operands = i.operands[:1] if first else i.operands
    arrays = [a for name in operands if name in inside for a in inside[name].arrays]
    found.append(("reduce-scatter" if scattered else kind, i, arrays, names))
  yield from found  # only now: every part is in its list


def _instructions(module: Module, computation: str):
  """Yields (what stands there, instruction, its computation, is a reduce-scatter).

  Fusions are opened. One of an all-reduce with the slice that a chip keeps is a
  reduce-scatter.
  """
  for i in module.computations[computation].values():
    yield i, i, module.computations[computation], False
    if i.opcode == "fusion":
      for name in i.called().get("calls", []):
        inside = module.computations[name]
        scattered = name.startswith("all-reduce-scatter")
        for j in inside.values():
          yield i, j, inside, scattered and j.opcode == "all-reduce"


def _meanwhile(
  module: Module, run: Run, i: Instruction, parts: Sequence[str]
) -> Work | None:
  if run.started:
    return hlo_overlap.after_start(module, *run.started)
  if i.opcode.endswith("-start") or i.opcode == "send":
    return hlo_overlap.after_start(module, run.computation, i.name)
  if not parts:
    return None
  # What the parts are woven into counts, that of the last one too.
  names = list(module.computations[run.computation])
  first, last = names.index(parts[0]), names.index(parts[-1])
  return hlo_overlap.of(module, run.computation, names[first : last + 1])


def _part(i: Instruction) -> tuple[str, str] | None:
  """Returns what the parts of one asynchronous collective have in common."""
  chain, channel = _CHAIN.search(i.rest), _CHANNEL.search(i.rest)
  if not chain or "async_collective" not in i.rest:
    return None
  return chain[1], channel[1] if channel else ""


def _sent(kind: str, size: int, n: int) -> float:
  if kind == "all-gather":
    return (n - 1) * size
  if kind == "collective-permute":
    return size
  return size * (n - 1) / n * (2 if kind == "all-reduce" else 1)


def _mesh_groups(axes: str, named: str) -> Groups:
  # 'a':(2)4 is a part of axis a: of size 4, with 2 before it.
  sizes = {m[1]: int(m[4]) for m in _AXIS.finditer(axes)}
  parts: list[tuple[str, int]] = []
  wanted = [(m[1], int(m[2] or 1), int(m[3] or 0)) for m in _AXIS.finditer(named)]
  inside: list[int] = []
  for axis, size in sizes.items():
    rest = size
    for _, before, length in sorted(w for w in wanted if w[0] == axis):
      length = length or size
      done = size // rest
      parts.append((axis, before // done))
      inside.append(len(parts))
      parts.append((axis, length))
      rest //= before // done * length
    parts.append((axis, rest))
  shape = [length for _, length in parts]
  ids = np.arange(math.prod(shape)).reshape(shape)
  ids = np.moveaxis(ids, inside, range(-len(inside), 0))
  return _rows(ids.reshape(-1, math.prod(shape[i] for i in inside)))


def _rows(ids: np.ndarray) -> Groups:
  return tuple(tuple(map(int, row)) for row in ids)


def _lists(text: str) -> Groups:
  return tuple(_ints(part) for part in re.findall(r"\{([\d,]+)\}", text))


def _ints(text: str) -> tuple[int, ...]:
  return tuple(int(x) for x in text.split(",") if x)
