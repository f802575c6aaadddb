"""What a classifier reads that may choose among the tokens of a frozen tower.

One learned query a head attends to all tokens, and a linear map classifies what it
gathered: attentive pooling as of arXiv 2205.01917 (section 3.3), without its MLP. It
sees what a tower knows of parts, which its pooling may have thrown away. Trained by
Adam with a cosine, on tokens that were encoded once; the learning rate is chosen on
every fifth concept of them.

Axis letters: b examples, t tokens, w width, h heads, c classes.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from evaluators import bootstrap, features, fit
from evaluators.context import Context
from evaluators.features import Labelled
from model.types import Params


def init(width: int, heads: int, classes: int, seed: int) -> dict[str, np.ndarray]:
  """Returns the parameters of `attend`.

  Raises:
    ValueError: heads that do not divide the width.
  """
  if heads < 1 or width % heads:
    raise ValueError(
      f"attentive_probe.heads = {heads} must divide the width of the tokens, {width}"
    )
  rng = np.random.default_rng(seed)
  std, shape = width**-0.5, (width, heads, width // heads)
  key, value = (std * rng.standard_normal(shape, np.float32) for _ in range(2))
  return {
    "query": rng.standard_normal(shape[1:], np.float32),
    "key": key,
    "value": value,
    "w": np.zeros((width, classes), np.float32),
    "b": np.zeros(classes, np.float32),
  }


def attend(params: Mapping[str, jax.Array], x: jax.Array, mask: jax.Array) -> jax.Array:
  """Returns f32[b, c], the logits of tokens x f32[b, t, w] with mask bool[b, t]."""
  x -= jnp.mean(x, axis=-1, keepdims=True)
  x *= lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
  heads, size = params["query"].shape
  scores = jnp.einsum("btw,whs,hs->bht", x, params["key"], params["query"])
  scores = jnp.where(mask[:, None], scores * size**-0.5, -1e30)
  seen = jnp.einsum("bht,btw->bhw", jax.nn.softmax(scores), x)
  y = jnp.einsum("bhw,whs->bhs", seen, params["value"])
  return fit.linear(params, y.reshape(len(x), heads * size), mask)


@dataclasses.dataclass(frozen=True)
class Evaluator:
  """Accuracy of an attentive probe for each label of the source.

  Attributes:
    context: mesh, encode function and recipe.
    name: of the results.
    split: of config.data.source, to classify.
    train: the split whose labels are learned.
    labels: label names; each is a classification of its own.
    modality: to classify by.
    heads: that attend, each by a query of its own.
    lr: first learning rates to choose from.
    l2: of the squares of matrices.
    epochs: passes over the training tokens.
    minibatch: rows.
    seed: of the first parameters and the order.
    batch_size: global, of the towers; 0 is config.batch_size.
    source: changes to the source's options, for both splits.
    bootstrap: resamples for 95% intervals, <metric>_low and <metric>_high; 0: none.
  """

  version: ClassVar[int] = 1

  context: Context
  _: dataclasses.KW_ONLY
  name: str = "attentive_probe"
  split: str = "test"
  train: str = "train"
  labels: tuple[str, ...] = ("group",)
  modality: str = "image"
  heads: int = 4
  lr: tuple[float, ...] = (1e-3, 1e-2)
  l2: float = 1e-4
  epochs: int = 30
  minibatch: int = 256
  seed: int = 0
  batch_size: int = 0
  source: Mapping[str, Any] | None = None
  bootstrap: int = 0

  def __post_init__(self):
    if not self.lr or min(self.lr) <= 0 or self.epochs < 1:
      raise ValueError(
        f"attentive_probe.lr = {self.lr} must be some numbers above 0, and "
        f"attentive_probe.epochs = {self.epochs} at least 1"
      )

  def run(self, params: Params) -> dict[str, float]:
    """Returns <label>_top1 and so on.

    Raises:
      ValueError: a label that the source does not have, no examples of it, heads that
        do not divide the tokens' width, or tokens that do not fit into memory.
    """
    how = (self.modality, self.batch_size, self.source)
    embedded = [
      features.embed(self.context, params, s, *how, read="tokens")
      for s in (self.train, self.split)
    ]
    metrics: dict[str, float] = {}
    queries: dict[str, np.ndarray] = {}
    for label in self.labels:
      train, test = (
        features.labelled(e, self.modality, label, self.name) for e in embedded
      )
      predicted, lr = self._predict(train, test)
      found = features.accuracy(predicted, test.y, self.bootstrap)
      metrics |= {f"{label}_{key}": value for key, value in found.items()}
      queries[f"{label}_top1"] = predicted == test.y
      metrics[f"{label}_lr"] = lr
      metrics[f"{label}_majority"] = features.majority(train.y, test.y)
      metrics[f"{label}_n"] = float(len(test.y))
    if self.bootstrap:
      bootstrap.save(self.context, self.name, queries)
    return metrics

  def _predict(self, train: Labelled, test: Labelled) -> tuple[np.ndarray, float]:
    """Returns i[n], the classes of the test examples, and the learning rate chosen."""
    classes = int(max(train.y.max(), test.y.max())) + 1
    held = features.held_out(train.concept)
    best, most = self.lr[0], -1
    if held.any() and len(self.lr) > 1:
      fitting, choosing = train.rows(~held), train.rows(held)
      for lr in self.lr:
        found = self._classify(self._fit(fitting, classes, lr), choosing)
        right = int((found == choosing.y).sum())
        if right > most:  # of equally good ones the first
          best, most = lr, right
    return self._classify(self._fit(train, classes, best), test), float(best)

  def _fit(self, data: Labelled, classes: int, lr: float) -> Any:
    return fit.by_steps(
      attend,
      init(data.x.shape[-1], self.heads, classes, self.seed),
      data,
      self.context.mesh,
      rule="adam",
      lr=lr,
      l2=self.l2,
      epochs=self.epochs,
      batch_size=self.minibatch,
      seed=self.seed,
    )

  def _classify(self, fitted: Any, data: Labelled) -> np.ndarray:
    return fit.predict(attend, fitted, data, self.context.mesh)
