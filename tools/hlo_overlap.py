"""What else a compiled step does while an asynchronous collective is under way.

Pure: HLO text in, FLOPs and bytes out. The text of a compiled program is in the order
in which it runs: what stands between the start of a collective and its end is all that
can hide it, and where nothing does, it is as good as synchronous.
"""

from collections.abc import Iterable
import math

from tools import hlo_flops, hlo_text, hlo_traffic
from tools.hlo_text import Instruction, Module

Work = tuple[tuple[float, float], ...]  # (FLOPs, bytes) of each instruction
UNKNOWN: Work = ((math.inf, 0.0),)  # it ends somewhere else: taken to be hidden


def after_start(module: Module, computation: str, start: str) -> Work:
  """Returns what runs between an instruction that starts and the one that ends it."""
  scope = module.computations[computation]
  names, current = list(scope), start
  while True:
    users = (j for j in scope.values() if current in j.operands)
    user = next((j for j in users if j.opcode.endswith(("-update", "-done"))), None)
    if user is None:
      return UNKNOWN
    current = user.name
    if user.opcode.endswith("-done"):
      return of(
        module, computation, names[names.index(start) + 1 : names.index(current)]
      )


def of(module: Module, computation: str, names: Iterable[str]) -> Work:
  """Returns what the named instructions of a computation do."""
  scope = module.computations[computation]
  return tuple(
    pair for name in names for pair in _work(module, computation, scope[name])
  )


def _work(module: Module, computation: str, i: Instruction) -> Work:
  """Returns what one instruction does: of a loop, all its turns."""
  scope = module.computations[computation]
  if i.opcode in ("while", "call", "conditional"):
    turns = (hlo_text.trip_count(module, i) or 1) if i.opcode == "while" else 1
    called = i.called()
    groups = [called["body"]] if i.opcode == "while" else called.values()
    inside = (
      pair
      for names in groups
      for name in names
      for j in module.computations[name].values()
      for pair in _work(module, name, j)
    )
    return tuple((turns * flops, turns * size) for flops, size in inside)
  pair = hlo_flops.of(module, scope, i), hlo_traffic.moved(module, scope, i)
  return (pair,) if any(pair) else ()
