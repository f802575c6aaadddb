"""A vector for each class: logits instead of an embedding (CatLIP, arXiv 2404.15653).

logit_v = <pooled, p_v> + bias_v

The rows are split over `tensor`, and so are the logits: no device holds all classes of
its examples (sharding/rules.py). `transfer` makes the classifier of another task out of
the rows of the classes that it shares with this one.
"""

from collections.abc import Mapping, Sequence
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from model.types import Array, Encoded, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
  """A linear classifier of `pooled`, shared by all the names that it is put on.

  Attributes:
    classes: V, how many.
    bias: of every logit at the start: the log odds of a class. 0: each is as likely as
      not, which of many classes that are mostly absent is far off.
  """

  classes: int
  bias: float = 0.0

  def __post_init__(self):
    if self.classes < 1:
      raise ValueError(f"prototypes has classes = {self.classes}; expected at least 1")

  def init(self, key: Array, spec: Mapping[str, Encoded]) -> Params:
    """Returns {"classes": {"embedding": [V, d], "bias": [V]}}.

    Raises:
      ValueError: names whose embeddings differ in width.
    """
    widths = {name: e.pooled.shape[-1] for name, e in spec.items()}
    if len(set(widths.values())) > 1:
      raise ValueError(
        f"prototypes is shared by embeddings of different width: {widths}"
      )
    start = _start(key, self.classes, next(iter(widths.values())))
    return {"classes": {"embedding": start, "bias": jnp.full(self.classes, self.bias)}}

  def __call__(
    self, params: Params, encoded: Mapping[str, Encoded], key: Array, train: bool
  ) -> dict[str, Encoded]:
    """Returns encoded with the logits as pooled f32[b, V]; tokens as they are."""
    del key, train
    own = params["classes"]
    out = {}
    for name, e in encoded.items():
      logits = e.pooled.astype(jnp.float32) @ own["embedding"].T + own["bias"][None]
      out[name] = dataclasses.replace(e, pooled=logits)
    return out


def transfer(params: Params, rows: Sequence[int] | np.ndarray, key: Array) -> Params:
  """Returns parameters of a `Head` for other classes, each from a row of `params`.

  Args:
    params: of a trained `Head`.
    rows: for each new class the one it is taken from, or -1 for none: it starts anew.
    key: of those that start anew.

  Raises:
    ValueError: a row that there is not.
  """
  old = params["classes"]
  known, width = old["embedding"].shape
  rows = np.asarray(rows, np.int32)
  if rows.ndim != 1 or rows.max(initial=-1) >= known or rows.min(initial=0) < -1:
    raise ValueError(f"rows must be in [-1, {known}), for {known} classes; got {rows}")
  found = rows >= 0
  place = np.maximum(rows, 0)
  fresh = _start(key, len(rows), width)
  mean = jnp.mean(old["bias"])
  return {
    "classes": {
      "embedding": jnp.where(found[:, None], old["embedding"][place], fresh),
      "bias": jnp.where(found, old["bias"][place], mean),
    }
  }


def _start(key: Array, classes: int, width: int) -> Array:
  return jax.random.normal(key, (classes, width)) * width**-0.5
