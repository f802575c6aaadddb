"""How many bytes a compiled step moves between a chip and its memory.

Pure: HLO text in, a number out. Every instruction outside fusions reads its operands
and writes its result; what lies in on-chip memory, by its layout, is free, and so is
what a fusion only passes on or reads a slice of. The compiler's own count has the loops
turn once only.
"""

from collections.abc import Mapping
import re

from tools import hlo_text
from tools.hlo_text import Instruction, Module

# They move nothing themselves: names, or programs counted by what they run.
_FREE = (
  *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
  *("while", "call", "conditional", "partition-id", "replica-id", "async-start"),
  *("async-update", "optimization-barrier", "add-dependency"),
)
_SLICES = ("dynamic-slice", "slice", "gather")
_ALIASES = re.compile(r"output_to_operand_aliasing=\{(.*?\))\}")
_ALIAS = re.compile(r"\{(\d*)\}: \((\d+), \{(\d*)\}")


def total(module: Module) -> int:
  """Returns the bytes that one chip reads from and writes to its memory in a step."""
  return sum(
    run.times * moved(module, module.computations[run.computation], i)
    for run in hlo_text.runs(module)
    for i in module.computations[run.computation].values()
  )


def moved(module: Module, scope: Mapping[str, Instruction], i: Instruction) -> int:
  """Returns the bytes that one instruction reads from and writes to the memory."""
  if i.opcode in _FREE or i.opcode.endswith("-done"):
    return 0
  if i.opcode == "custom-call" and not i.operands:  # room for what others will write
    return 0
  if i.opcode in _SLICES:
    return 2 * _in_hbm(i)
  if i.opcode == "dynamic-update-slice":
    return 2 * scope[i.operands[1]].bytes
  if i.opcode in ("send", "recv"):
    return i.arrays[0].bytes
  if i.opcode.endswith("-start"):
    return _started(scope, i)
  if i.opcode != "fusion":
    return _in_hbm(i) + sum(_in_hbm(scope[n]) for n in i.operands if n in scope)
  return _fusion(module, scope, i)


def _started(scope: Mapping[str, Instruction], i: Instruction) -> int:
  """Bytes of a transfer, whose type is a tuple of its ends, in an order of its own."""
  source = scope[i.operands[0]].arrays[0]
  target = i.arrays[0 if i.opcode == "copy-start" or len(i.arrays) == 1 else 1]
  read = min(source.bytes, target.bytes) if "slice" in i.opcode else source.bytes
  return read * source.in_hbm + target.bytes * target.in_hbm


def _fusion(module: Module, scope: Mapping[str, Instruction], i: Instruction) -> int:
  inside = module.computations[i.called()["calls"][0]]
  passed_out, passed_in = _passed_on(i)
  root = next(j for j in inside.values() if j.root)
  results = root.operands if root.opcode == "tuple" else (root.name,)
  if len(results) != len(i.arrays):  # a tuple of tuples
    return _in_hbm(i) + sum(_in_hbm(scope[n]) for n in i.operands if n in scope)
  out = sum(
    _written(module, inside, name)
    for k, (name, array) in enumerate(zip(results, i.arrays, strict=True))
    if array.in_hbm and k not in passed_out
  )
  for k, name in enumerate(i.operands):
    if k not in passed_in and name in scope:
      out += min(_in_hbm(scope[name]), _read(module, inside, k))
  return out


def _passed_on(i: Instruction) -> tuple[set[int], set[int]]:
  """Returns the results and the operands of a fusion that are one buffer."""
  aliases = _ALIASES.search(i.rest)
  pairs = _ALIAS.findall(aliases[1]) if aliases else []
  return {int(a or 0) for a, _, _ in pairs}, {int(b) for _, b, _ in pairs}


def _read(module: Module, inside: Mapping[str, Instruction], index: int) -> int:
  """Returns the bytes of parameter `index` that a fused computation reads."""
  name = next(
    (
      j.name
      for j in inside.values()
      if j.opcode == "parameter" and re.match(rf"{index}\b", j.rest)
    ),
    None,
  )
  return _read_of(module, inside, name) if name else 0


def _read_of(module: Module, inside: Mapping[str, Instruction], name: str) -> int:
  read = 0
  for user in (j for j in inside.values() if name in j.operands):
    if user.opcode in _SLICES and user.operands[0] == name:
      read += user.bytes
    elif user.opcode == "bitcast":
      read += _read_of(module, inside, user.name)
    elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
      continue  # written in place
    elif user.opcode == "fusion":
      called = module.computations[user.called()["calls"][0]]
      places = [k for k, operand in enumerate(user.operands) if operand == name]
      read += sum(_read(module, called, k) for k in places)
    else:
      return inside[name].bytes
  return min(read, inside[name].bytes)


def _written(module: Module, inside: Mapping[str, Instruction], name: str) -> int:
  """Returns the bytes that a fusion writes for a result: of a stack, one slice."""
  i = inside[name]
  if i.opcode == "bitcast":
    return _written(module, inside, i.operands[0])
  if i.opcode == "dynamic-update-slice":
    return inside[i.operands[1]].bytes
  if i.opcode == "fusion" and len(i.arrays) == 1:
    called = i.called()["calls"][0]
    return _written(module, module.computations[called], module.root(called).name)
  return i.bytes


def _in_hbm(i: Instruction) -> int:
  return sum(a.bytes for a in i.arrays if a.in_hbm)
