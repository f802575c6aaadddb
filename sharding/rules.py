"""Which parameter is split over which mesh axes: an ordered table, first match wins.

A rule is `(regex, axes)`. The regex must match the END of the slash-joined path of an
array, from a path component on: `mlp/up/kernel` matches that parameter in every block
of every tower and, because optimizers keep the parameter's path, its moments too.
`axes` speak of the TRAILING dimensions: None (whole), an axis, or a tuple of axes;
leading ones, such as the layers of a scan, stay whole.

The layout is Megatron's (arXiv 1909.08053, section 3) on `tensor` and ZeRO-3's
(arXiv 1910.02054) on `fsdp`: the columns of the first matrix of a block and the rows
of the second over `tensor`, so that a block needs one sum; the rest over `fsdp`.

Which dimension `fsdp` splits decides what a gradient costs. Split along heads, rows or
experts, whose parts lie apart in memory, the TPU compiler scatters it; along the last
dimension it sums it whole on every chip and drops the rest, twice the bytes
(docs/scale.md).
"""

from collections.abc import Iterable, Sequence
import dataclasses
import functools
import math
import re
from typing import Any

from absl import logging
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from model import catalogue
from model.types import BATCH_AXES

Axes = tuple[str | tuple[str, ...] | None, ...]
Rule = tuple[str, Axes]

ROWS = ("tensor", "fsdp")  # of one dimension: the parts of `tensor`, and parts of these

DEFAULT: tuple[Rule, ...] = (
  # Sparse layers. The router is small and every chip needs it whole, in f32.
  (r"moe/router/.*", ()),
  # Adafactor's second moments, factored over the last two dimensions, lack one of them.
  (r"v_(row|col)/.*moe/experts/\w+/kernel", ("expert", None)),  # [e, w] or [e, m]
  (r"moe/experts/up/kernel", ("expert", "fsdp", "tensor")),  # [e, w, m]
  (r"moe/experts/up/bias", ("expert", "tensor")),  # [e, m]
  (r"moe/experts/down/kernel", ("expert", ROWS, None)),  # [e, m, w]
  (r"moe/experts/down/bias", ("expert", None)),  # [e, w]
  # Attention: heads over both.
  (r"attention/(query|key|value)/kernel", (None, ROWS, None)),  # [w, h, w/h]
  (r"attention/(query|key|value)/bias", ("tensor", None)),  # [h, w/h]
  (r"attention/out/kernel", (ROWS, None, None)),  # [h, w/h, w]
  # Dense MLP.
  (r"mlp/up/kernel", ("fsdp", "tensor")),  # [w, m]
  (r"mlp/up/bias", ("tensor",)),  # [m]
  (r"mlp/down/kernel", (ROWS, None)),  # [m, w]
  # Stems: ids over both; patch values over tensor, the width over fsdp.
  (r"stem_\w+/embed/embedding", (ROWS, None)),  # [vocab, w]
  (r"stem_\w+/embed/kernel", ("tensor", "fsdp")),  # [patch values, w]
  (r"stem_\w+/position", (None, "fsdp")),  # [n, w]
  (r"wide_\w+/embedding", ("tensor", "fsdp")),  # [rows, d]
  (r"project_\w+/kernel", ("fsdp", "tensor")),  # [w, d]
  # Heads: the logits of classes are split like the columns of a matrix.
  (r"classes/embedding", ("tensor", "fsdp")),  # [classes, d]
  (r"classes/bias", ("tensor",)),  # [classes]
  (r"codes", ("fsdp", None)),  # [m, d]
  # What objectives keep between steps (model/objectives/memory.py): by rows, as the
  # batch, so that a new key stays on the device that made it.
  (r"queue/\w+/keys", (BATCH_AXES, None, None)),  # [b, s, d]
  (r"queue/\w+/(valid|ids)", (BATCH_AXES, None)),  # [b, s]
  (r"bank/\w+/rows", (BATCH_AXES, None)),  # [n, d]
  # Norms, biases, temperatures: whole.
  (r"(scale|bias)", ()),
  # Any other matrix, e.g. of heads and objectives.
  (r"kernel", ("fsdp", None)),
  (r".*", ()),
)

# Replicating more elements than this because no axis divides deserves a warning.
LARGE = 1 << 20
# An axis that only saves memory may split whichever dimension it divides. `tensor` and
# `expert` split the computation too: elsewhere they would cost communication.
MOVABLE = ("fsdp", "data")


@dataclasses.dataclass(frozen=True)
class Assignment:
  """How one array is laid out: the rule that matched, the spec, what did not fit."""

  path: str
  rule: str
  spec: PartitionSpec
  notes: tuple[str, ...] = ()


def table(rules: Iterable[Sequence[Any]] = ()) -> tuple[Rule, ...]:
  """Returns `config.sharding.rules` followed by the default rules.

  A table passed again comes out as it is: every function here takes either.

  Raises:
    ValueError: an entry that is not (regex, axes).
  """
  own = tuple(map(_rule, rules))
  return own if own[-len(DEFAULT) :] == DEFAULT else (*own, *DEFAULT)


def is_table(value: Any) -> bool:
  """Says whether `value` is a sequence of rules rather than a tree of shardings."""
  return isinstance(value, list | tuple) and all(
    isinstance(rule, list | tuple) and len(rule) == 2 and isinstance(rule[0], str)
    for rule in value
  )


def assign(
  path: str,
  shape: Sequence[int],
  mesh: Mesh | AbstractMesh,
  rules: Sequence[Rule] = DEFAULT,
) -> Assignment:
  """Returns the layout of the array at `path` by the first rule that matches.

  Raises:
    ValueError: the matching rule names an axis that the mesh lacks, or one axis twice.
  """
  for rule in rules:
    pattern = rule[0]
    if _compiled(pattern).fullmatch(path):
      wanted = _wanted(rule, mesh)
      spec, notes = _fit(wanted, tuple(shape), mesh)
      return Assignment(path, pattern, spec, notes)
  return Assignment(path, "(none)", PartitionSpec())


def specs(
  tree: Any, mesh: Mesh | AbstractMesh, rules: Iterable[Sequence[Any]] = ()
) -> Any:
  """Returns the NamedSharding of every array of `tree`, as a tree of its structure.

  Works for parameters, optimizer states and whole train states: moments carry the path
  of their parameter as a suffix; scalars and keys are replicated.

  Args:
    tree: arrays or `jax.ShapeDtypeStruct`s.
    mesh: the mesh.
    rules: `config.sharding.rules`, put before the default ones.

  Raises:
    ValueError: a rule that names an unknown axis; every rule is checked.
  """
  rules = table(rules)
  check(rules, mesh)

  def one(path, leaf):
    assigned = assign(path_of(path), leaf.shape, mesh, rules)
    if assigned.notes and leaf.size >= LARGE:
      _warn_once(f"{assigned.path} {leaf.shape}: {'; '.join(assigned.notes)}")
    return NamedSharding(mesh, assigned.spec)

  return jax.tree_util.tree_map_with_path(one, tree)


def check(rules: Sequence[Rule], mesh: Mesh | AbstractMesh) -> None:
  """Checks every rule, matched or not, so that a typing error cannot sleep.

  Raises:
    ValueError: an unknown axis, an axis twice, or a regex that does not compile.
  """
  for rule in rules:
    _compiled(rule[0])
    _wanted(rule, mesh)


def path_of(path: tuple[Any, ...]) -> str:
  """Returns a key path of jax.tree_util as `towers/trunk/block00/mlp/up/kernel`."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _rule(entry: Sequence[Any]) -> Rule:
  if not (is_table([entry]) and isinstance(entry[1], str | list | tuple | None)):
    raise ValueError(
      f"config.sharding.rules has {entry!r}; expected (regex, axes), "
      "e.g. ('mlp/up/kernel', ('fsdp', 'tensor'))"
    )
  pattern, axes = entry
  axes = (axes,) if isinstance(axes, str) else axes or ()
  return pattern, tuple(tuple(a) if isinstance(a, list) else a for a in axes)


@functools.cache
def _warn_once(text: str) -> None:
  logging.warning("%s", text)  # a setup asks for the same layout several times


@functools.lru_cache(maxsize=1024)
def _compiled(pattern: str) -> re.Pattern[str]:
  try:
    return re.compile(rf"(?:.*/)?(?:{pattern})")
  except re.error as error:
    raise ValueError(
      f"the regex {pattern!r} of config.sharding.rules does not compile: {error}"
    ) from None


def _wanted(rule: Rule, mesh: Mesh | AbstractMesh) -> list[tuple[str, ...]]:
  """Returns the axes of every trailing dimension; validates the rule."""
  pattern, axes = rule
  wanted = [() if a is None else (a,) if isinstance(a, str) else tuple(a) for a in axes]
  flat = [axis for entry in wanted for axis in entry]
  for axis in flat:
    if axis not in mesh.shape:
      known = list(mesh.shape)
      raise ValueError(
        f"the sharding rule ({pattern!r}, {axes!r}) names the mesh axis {axis!r}: "
        f"{catalogue.near_misses(axis, known)}. Mend config.sharding.rules."
      )
  if len(set(flat)) < len(flat):
    raise ValueError(
      f"the sharding rule ({pattern!r}, {axes!r}) names a mesh axis twice. "
      "Mend config.sharding.rules: an axis splits one dimension of an array."
    )
  return wanted


def _fit(
  wanted: list[tuple[str, ...]], shape: tuple[int, ...], mesh: Mesh | AbstractMesh
) -> tuple[PartitionSpec, tuple[str, ...]]:
  """Fits the wanted axes to a shape: what does not divide moves, or stays whole."""
  if len(wanted) > len(shape):
    # Factored or scalar statistics of a larger parameter: small by construction.
    split = any(mesh.shape[axis] > 1 for entry in wanted for axis in entry)
    note = f"replicated: rank {len(shape)} < {len(wanted)} of the rule"
    return PartitionSpec(), (note,) if split and shape else ()
  first = len(shape) - len(wanted)
  placed: list[tuple[str, ...]] = [() for _ in shape]
  homeless: list[tuple[int, str]] = []
  for dim, entry in enumerate(wanted, first):
    for axis in entry:
      if mesh.shape[axis] == 1:
        continue  # canonical: the compiler's own shardings leave such axes out
      if _divides((*placed[dim], axis), shape[dim], mesh):
        placed[dim] = (*placed[dim], axis)
      else:
        homeless.append((dim, axis))
  notes = []
  for dim, axis in homeless:
    why = f"{shape[dim]} % {_parts((*placed[dim], axis), mesh)}"
    others = [d for d in range(first, len(shape)) if not placed[d] and d != dim]
    home = [d for d in others if _divides((axis,), shape[d], mesh)]
    if axis in MOVABLE and home:
      placed[home[0]] = (axis,)
      notes.append(f"{axis} moved to dim {home[0]}: {why}")
    else:
      notes.append(f"{axis} replicated: {why}")
  while placed and not placed[-1]:
    placed.pop()
  parts = [None if not p else p[0] if len(p) == 1 else p for p in placed]
  return PartitionSpec(*parts), tuple(notes)


def _divides(axes: tuple[str, ...], size: int, mesh: Mesh | AbstractMesh) -> bool:
  return size % _parts(axes, mesh) == 0


def _parts(axes: tuple[str, ...], mesh: Mesh | AbstractMesh) -> int:
  return math.prod(mesh.shape[axis] for axis in axes)
