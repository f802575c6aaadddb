"""Inputs for any loss of model/losses, by what the loss says that it reads."""

import dataclasses
from typing import Any

import jax
import numpy as np

from model import catalogue
from model.types import Array, Batch, Encoded

PACKAGE = "model.losses"
TOKENS = 3  # of a set, for losses over sets
Inputs = dict[str, Any]  # modality -> [b, d], or Encoded


def names() -> list[str]:
  """Returns the files of model/losses that define a Loss."""
  files = catalogue.names(PACKAGE)
  return [n for n in files if catalogue.defines(PACKAGE, n, "Loss")]


def build(name: str, dim: int, **options: Any) -> Any:
  """Returns the loss with its defaults but for `options` that it has.

  Args:
    name: of a file of model/losses.
    dim: width of an embedding, for parameters that are as wide.
    **options: any of "strategy", "tile", ...; those it does not have are left out.
  """
  fields = {f.name for f in dataclasses.fields(catalogue.find(PACKAGE, name, "Loss"))}
  own = {k: v for k, v in {"dim": dim, **options}.items() if k in fields}
  return catalogue.load(PACKAGE, name, "Loss", own)


def has_strategies(name: str) -> bool:
  """Returns whether the loss has the strategies of model.losses.reduce."""
  cls = catalogue.find(PACKAGE, name, "Loss")
  return "strategy" in {f.name for f in dataclasses.fields(cls)}


def modalities(loss: Any) -> list[str]:
  """Returns what the loss compares: its `modalities`, or else `pairs` of them."""
  pairs = getattr(loss, "pairs", (("image", "text"),))
  return sorted({*getattr(loss, "modalities", (m for pair in pairs for m in pair))})


def teachers(loss: Any) -> set[str]:
  """Returns what the loss reads of z without gradient."""
  return set(getattr(loss, "teachers", ()))


def embeddings(loss: Any, b: int, d: int) -> Inputs:
  """Returns unit vectors, or sets of them, that share a signal, as after training.

  A loss over `tokens` gets those `fields` of Encoded that it names; by default, tokens.
  """
  rng = np.random.default_rng(0)
  sets = getattr(loss, "tokens", False)
  shape = (b, TOKENS, d) if sets else (b, d)
  common = rng.normal(size=shape)
  z: Inputs = {}
  for m in sorted({*modalities(loss), *teachers(loss)}):
    x = common + rng.normal(size=shape)
    x = (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
    if not sets:
      z[m] = x
      continue
    known = dict(pooled=x.mean(1), tokens=x, log_var=np.log(x.var(1)))
    read = getattr(loss, "fields", ("tokens",))
    z[m] = Encoded(**{"pooled": None} | {k: known[k] for k in read})
  return z


def batch_of(loss: Any, b: int) -> dict[str, np.ndarray]:
  """Returns whatever else the loss `reads`: a positive number of each row.

  But for names that say what they are: label_<name> is a class, -1 if unlabelled, and
  <name>_partner the place of another row, -1 if there is none.
  """
  index = np.arange(b, dtype=np.int32)
  batch = {"valid": np.ones(b, bool), "id": index, "label": index % 5}
  numbers = np.random.default_rng(5).uniform(1, 100, b).astype(np.float32)
  for key in getattr(loss, "reads", ()):
    if key.startswith("label_"):
      batch[key] = np.where(index % 7 == 3, -1, index % 5).astype(np.int32)
    elif key.endswith("_partner"):
      other = np.random.default_rng(6).permutation(index)
      batch[key] = np.where(index % 3 == 1, -1, other).astype(np.int32)
    else:
      batch.setdefault(key, numbers)
  return batch


def abstract(loss: Any, b: int, d: int, sharding: Any) -> tuple[Any, Batch]:
  """Returns (z, batch) as jax.ShapeDtypeStruct, whatever their size."""

  def one(x: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype, sharding=sharding)

  return jax.tree.map(one, (embeddings(loss, 2, d), batch_of(loss, 2)))
