"""Reads compiled HLO text: computations, instructions, and how often each one runs.

Pure: text in, dataclasses out; no XLA. Only what `tools.hlo_collectives` and
`tools.hlo_traffic` ask for is kept. The text is that of a compiled module.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import math
import re

_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_ARRAY = re.compile(r"\b(pred|(?:bf|[sufc])(\d+)\w*)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_OPERAND = re.compile(r"%([\w.\-]+(?:#\d+)?)")
_CALLED = re.compile(
  r"\b(calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"\b(?:branch_computations|called_computations)=\{([^}]*)\}")
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_TRIPS = re.compile(r'"known_trip_count":\s*\{"n":\s*"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a shape: bytes without padding, and whether it lies in main memory."""

  bytes: int
  dims: tuple[int, ...]
  dtype: str
  in_hbm: bool = True


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: without the percent sign.
    shape: text of its type.
    opcode: e.g. "all-gather".
    operands: names, in the same computation.
    rest: attributes, as text.
    root: whether it is the result of its computation.
  """

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  rest: str
  root: bool = False

  @functools.cached_property
  def arrays(self) -> tuple[Array, ...]:
    """The arrays of its type: one, or those of a tuple, nested ones included."""
    return arrays(self.shape)

  @property
  def bytes(self) -> int:
    """All bytes of its type."""
    return sum(a.bytes for a in self.arrays)

  def called(self) -> dict[str, list[str]]:
    """Attribute -> computations that it names."""
    out: dict[str, list[str]] = {}
    for key, name in _CALLED.findall(self.rest):
      out.setdefault(key, []).append(name)
    for names in _BRANCHES.findall(self.rest):
      out.setdefault("branches", []).extend(_NAME.findall(names) or names.split(", "))
    return out


@dataclasses.dataclass(frozen=True)
class Module:
  """A program: computations by name, each a mapping of its instructions by name."""

  computations: Mapping[str, Mapping[str, Instruction]]
  entry: str

  def root(self, computation: str) -> Instruction:
    """Returns the result of a computation."""
    return next(i for i in self.computations[computation].values() if i.root)


@dataclasses.dataclass(frozen=True)
class Run:
  """A computation that runs as a program of its own: not the inside of a fusion.

  Attributes:
    computation: its name.
    times: how often a step runs it.
    known: False where a loop on the way does not say how often it turns (taken as 1).
    started: (computation, name) of the async-start that runs it while other work goes
      on; None: it is waited for.
  """

  computation: str
  times: int
  known: bool = True
  started: tuple[str, str] | None = None


def parse(text: str) -> Module:
  """Returns the module of HLO text.

  Raises:
    ValueError: no ENTRY computation.
  """
  computations: dict[str, dict[str, Instruction]] = {}
  entry, current = "", None
  for line in text.splitlines():
    head = _HEAD.match(line)
    if head:
      current = computations.setdefault(head[2], {})
      entry = head[2] if head[1] else entry
    elif current is not None and (instruction := _instruction(line)):
      for name in instruction.operands:
        if "#" in name and name not in current:
          current[name] = _element(current, name)
      current[instruction.name] = instruction
  if not entry:
    raise ValueError("no ENTRY computation in the text: expected compiled HLO")
  return Module(computations, entry)


def arrays(shape: str) -> tuple[Array, ...]:
  """Returns the arrays of a type such as `(f32[2,3]{1,0}, bf16[])`."""
  found = []
  for dtype, bits, dims, layout in _ARRAY.findall(shape):  # not token[], opaque[]
    sizes = tuple(int(d) for d in dims.split(",") if d)
    size = math.ceil(math.prod(sizes) * int(bits or 8) / 8)
    # S(1) and above are memories on the chip; none or S(0) is HBM.
    in_hbm = not re.search(r"S\([1-9]", layout)
    found.append(Array(size, sizes, dtype, in_hbm))
  return tuple(found)


def runs(module: Module) -> Iterator[Run]:
  """Yields what runs in a step: the entry, loop bodies, branches and called ones.

  A loop's body counts as often as the loop turns, each branch of a conditional once.
  """
  stack = [Run(module.entry, 1)]
  while stack:
    run = stack.pop()
    yield run
    for i in module.computations[run.computation].values():
      called = i.called()
      if i.opcode == "while":
        trips = trip_count(module, i)
        known = run.known and trips is not None
        times = run.times * (trips or 1)
        stack += [Run(c, times, known, run.started) for c in called["body"]]
      elif i.opcode in ("call", "conditional", "async-start"):
        names = [name for group in called.values() for name in group]
        here = (run.computation, i.name) if i.opcode == "async-start" else run.started
        stack += [Run(c, run.times, run.known, here) for c in names]


def source(i: Instruction) -> str:
  """Returns the JAX operation that an instruction comes from, as far as it tells."""
  found = _OP_NAME.search(i.rest)
  return found[1].replace("\\", "") if found else ""


def trip_count(module: Module, loop: Instruction) -> int | None:
  """Returns how often a `while` turns; None if the text does not tell."""
  told = _TRIPS.search(loop.rest)
  if told:
    return int(told[1])
  # A counter from 0 in steps of 1, compared with a constant: what lax.scan makes.
  condition = module.computations[loop.called()["condition"][0]]
  limits = [i for i in condition.values() if i.opcode == "constant"]
  text = "".join(i.rest for i in condition.values() if i.opcode == "compare")
  for i in condition.values():
    for name in i.called().get("calls", []):
      inner = module.computations[name].values()
      text += "".join(j.rest for j in inner if j.opcode == "compare")
      limits += [j for j in inner if j.opcode == "constant"]
  values = [int(m[0]) for i in limits if (m := re.search(r"^-?\d+", i.rest))]
  return values[0] if "direction=LT" in text and len(values) == 1 else None


def _instruction(line: str) -> Instruction | None:
  start = _INSTRUCTION.match(line)
  if not start:
    return None
  at = start.end()
  end = _closing(line, at) + 1 if line[at] == "(" else line.find(" ", at)
  shape = line[at:end]
  opening = line.find("(", end)
  if opening < 0:
    return None
  opcode = line[end:opening].strip()
  closing = _closing(line, opening)
  inside = line[opening + 1 : closing]
  rest = line[closing + 1 :].removeprefix(", ")
  if opcode in ("constant", "parameter"):
    return Instruction(
      start[2], shape, opcode, (), inside + ", " + rest, bool(start[1])
    )
  operands = tuple(_OPERAND.findall(inside))
  return Instruction(start[2], shape, opcode, operands, rest, bool(start[1]))


def _element(scope: Mapping[str, Instruction], name: str) -> Instruction:
  """Returns the get-tuple-element that newer texts write as %tuple#2."""
  whole, _, index = name.partition("#")
  parts, depth = [""], 0
  for c in scope[whole].shape[1:-1]:
    depth += (c in "([{") - (c in ")]}")
    if c == "," and not depth:
      parts.append("")
    else:
      parts[-1] += c
  return Instruction(name, parts[int(index)], "get-tuple-element", (whole,), "")


def _closing(line: str, opening: int) -> int:
  depth = 0
  for i in range(opening, len(line)):
    depth += (line[i] == "(") - (line[i] == ")")
    if not depth:
      return i
  return len(line)
