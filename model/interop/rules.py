"""Rules that rename and reshape arrays, readable in both directions.

A checkpoint format is a list of rules for one model. Each moves a few arrays of ours
from and to a few of theirs, and loses nothing on the way, so that one list serves
import and export. Linear layers of PyTorch hold [out, in], ours [in, out].
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import numpy as np

Arrays = Mapping[str, np.ndarray]
FLOATS = ("float16", "bfloat16", "float32", "float64")
SHOWN = 8  # arrays named in an error message


@dataclasses.dataclass(frozen=True)
class Rule:
  """Some of our arrays <-> some of theirs.

  Attributes:
    ours: slash-joined paths.
    theirs: names.
    read: their arrays -> a tuple of ours.
    write: our arrays -> a tuple of theirs.
  """

  ours: tuple[str, ...]
  theirs: tuple[str, ...]
  read: Callable[..., tuple[np.ndarray, ...]]
  write: Callable[..., tuple[np.ndarray, ...]]


def one(ours: str, theirs: str, read=None, write=None) -> Rule:
  """Returns the rule of one array each; read and write: array -> array."""

  def keep(x: np.ndarray) -> np.ndarray:
    return x

  there, back = read or keep, write or keep
  return Rule((ours,), (theirs,), lambda x: (there(x),), lambda x: (back(x),))


def transposed(ours: str, theirs: str) -> Rule:
  """Returns the rule of a matrix [in, out] that they hold as [out, in]."""
  return one(ours, theirs, np.transpose, np.transpose)


def led(ours: str, theirs: str, axes: int) -> Rule:
  """Returns the rule of an array that they hold with `axes` axes of 1 in front."""
  return one(
    ours,
    theirs,
    lambda x: x.reshape(x.shape[axes:]),
    lambda x: x.reshape((1,) * axes + x.shape),
  )


def linear(ours: str, theirs: str, bias: bool = True) -> list[Rule]:
  """Returns the rules of a linear layer."""
  rules = [transposed(f"{ours}/kernel", f"{theirs}.weight")]
  return rules + [one(f"{ours}/bias", f"{theirs}.bias")] * bias


def norm(ours: str, theirs: str) -> list[Rule]:
  """Returns the rules of a layer norm."""
  return [
    one(f"{ours}/scale", f"{theirs}.weight"),
    one(f"{ours}/bias", f"{theirs}.bias"),
  ]


def projections(
  ours: Sequence[str], weight: str, bias: str, heads: int
) -> tuple[Rule, Rule]:
  """Returns the rules of projections to heads that they keep in one array.

  Args:
    ours: layers of ours, {kernel [w, h, w/h], bias [h, w/h]}, in their order.
    weight: their [len(ours) * w, w].
    bias: their [len(ours) * w].
    heads: h.
  """
  n = len(ours)

  def read(x: np.ndarray) -> tuple[np.ndarray, ...]:
    width = x.shape[-1]
    return tuple(p.T.reshape(width, heads, -1) for p in np.split(x, n))

  def write(*kernels: np.ndarray) -> tuple[np.ndarray, ...]:
    return (np.concatenate([k.reshape(len(k), -1).T for k in kernels]),)

  return (
    Rule(tuple(f"{o}/kernel" for o in ours), (weight,), read, write),
    Rule(
      tuple(f"{o}/bias" for o in ours),
      (bias,),
      lambda x: tuple(p.reshape(heads, -1) for p in np.split(x, n)),
      lambda *biases: (np.concatenate([b.reshape(-1) for b in biases]),),
    ),
  )


def attended(ours: str, theirs: str, heads: int) -> list[Rule]:
  """Returns the rules of the layer after attention: kernel [h, w/h, w] of ours."""
  return [
    one(
      f"{ours}/kernel",
      f"{theirs}.weight",
      lambda x: x.T.reshape(heads, -1, x.shape[0]),
      lambda x: x.reshape(-1, x.shape[-1]).T,
    ),
    one(f"{ours}/bias", f"{theirs}.bias"),
  ]


def packed_attention(ours: str, theirs: str, heads: int) -> list[Rule]:
  """Returns the rules of torch.nn.MultiheadAttention."""
  names = [f"{ours}/{part}" for part in ("query", "key", "value")]
  qkv = projections(names, f"{theirs}.in_proj_weight", f"{theirs}.in_proj_bias", heads)
  return [*qkv, *attended(f"{ours}/out", f"{theirs}.out_proj", heads)]


def patches(
  ours: str, theirs: str, patch: Sequence[int], channels: int, bias: bool
) -> list[Rule]:
  """Returns the rules of a strided convolution [w, c, ph, pw], ours a matrix."""
  high, wide = patch
  kernel = one(
    f"{ours}/kernel",
    f"{theirs}.weight",
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    lambda x: x.reshape(high, wide, channels, -1).transpose(3, 2, 0, 1),
  )
  return [kernel] + [one(f"{ours}/bias", f"{theirs}.bias")] * bias


def class_token(
  cls: str, position: str, token: str, table: str, axes: tuple[int, int] = (0, 0)
) -> Rule:
  """Returns the rule of a class token that has a position with them, none with us.

  Theirs: token [w] and table [1 + n, w], with `axes` axes of 1 in front. What the
  network sees is their sum: the position of the token is added to it on the way in, and
  is 0 on the way out.
  """

  def read(token: np.ndarray, table: np.ndarray) -> tuple[np.ndarray, ...]:
    token, table = (x.reshape(x.shape[n:]) for x, n in zip((token, table), axes))
    return token + table[0], table[1:]

  def write(cls: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, ...]:
    whole = np.concatenate([np.zeros_like(position[:1]), position])
    ones = ((1,) * n for n in axes)
    return tuple(x.reshape(one + x.shape) for x, one in zip((cls, whole), ones))

  return Rule((cls, position), (token, table), read, write)


@dataclasses.dataclass(frozen=True)
class Read:
  """What came of reading a checkpoint.

  Attributes:
    params: our path -> f32 array.
    loaded: their names that were read.
    missing: their names that the model asks for and the checkpoint lacks.
    unused: their names that the model has no place for.
  """

  params: dict[str, np.ndarray]
  loaded: tuple[str, ...]
  missing: tuple[str, ...]
  unused: tuple[str, ...]


def read(rules: Sequence[Rule], state: Arrays, shapes: Mapping[str, tuple]) -> Read:
  """Applies the rules to a checkpoint of theirs.

  Args:
    rules: of the format.
    state: their name -> array of floats.
    shapes: our path -> shape, of the model that the rules are for.

  Raises:
    ValueError: an array of another shape than the model's, or of integers; names up
      to 8 of them.
  """
  params: dict[str, np.ndarray] = {}
  missing, wrong, coded = [], [], []
  for rule in rules:
    absent = [name for name in rule.theirs if name not in state]
    if absent:
      missing += absent
      continue
    blanks = (np.broadcast_to(np.float32(0), shapes[path]) for path in rule.ours)
    for name, blank in zip(rule.theirs, rule.write(*blanks)):
      if state[name].shape != blank.shape:
        wrong.append(f"  {name}: {state[name].shape}, expected {blank.shape}")
      if state[name].dtype.name not in FLOATS:
        coded.append(f"{name} of {state[name].dtype.name}")
    if not wrong and not coded:
      arrays = (np.asarray(state[name], np.float32) for name in rule.theirs)
      params |= zip(rule.ours, rule.read(*arrays))
  if coded:
    raise ValueError(
      f"the checkpoint is quantised: {len(coded)} of its arrays are no floats, such as "
      f"{', '.join(coded[:3])}; take the one that it was made of"
    )
  if wrong:
    more = [f"  ... and {len(wrong) - SHOWN} more"] * (len(wrong) > SHOWN)
    raise ValueError(
      f"{len(wrong)} arrays have another shape than the model that the rest of the "
      "checkpoint and its config.json describe:\n" + "\n".join(wrong[:SHOWN] + more)
    )
  known = [name for rule in rules for name in rule.theirs]
  return Read(
    {path: np.asarray(x, order="C") for path, x in params.items()},
    tuple(name for name in known if name in state and name not in missing),
    tuple(missing),
    tuple(sorted({*state} - {*known})),
  )


def write(rules: Sequence[Rule], params: Arrays) -> dict[str, np.ndarray]:
  """Applies the rules backwards: our path -> array to their name -> f32 array.

  Raises:
    ValueError: parameters that the format has no place for, or that are missing.
  """
  known = [path for rule in rules for path in rule.ours]
  odd = [f"  {path}: not in the format" for path in sorted({*params} - {*known})]
  odd += [f"  {path}: not in the model" for path in sorted({*known} - {*params})]
  if odd:
    raise ValueError(
      f"{len(odd)} parameters keep the model from being written:\n"
      + "\n".join(odd[:SHOWN])
    )
  state: dict[str, np.ndarray] = {}
  for rule in rules:
    arrays = rule.write(*(np.asarray(params[path]) for path in rule.ours))
    state |= {k: np.asarray(x, order="C") for k, x in zip(rule.theirs, arrays)}
  return state
