"""Classification of each row, into any number of classes: CatLIP (arXiv 2404.15653).

sigmoid: L = mean_i [sum_v softplus(l_iv) - sum_{v in Y_i} l_iv], the binary
         cross-entropy of all classes, summed over them
softmax: L = mean_i [lse_v(l_iv) - mean_{v in Y_i} l_iv], the cross-entropy to the
         uniform distribution over Y_i (arXiv 1805.00932); of one class, the usual one

l: logits of all classes, such as the head "prototypes" gives; Y_i: the classes of row i
in the batch. No array of targets [b, classes] is made.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from model.losses import pairs as pairing
from model.types import Array, Batch, Metrics, Params

FORMS = ("sigmoid", "softmax")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """Classification of every modality alone; the loss is the mean over modalities.

  Rows without a class are left out: they are not said to be of none.

  Attributes:
    modalities: whose logits.
    labels: the key of the batch: i32[b], or i32[b, n] of different classes in any
      order; -1 is none, elsewhere also padding.
    form: "sigmoid" | "softmax".
  """

  normalized: ClassVar[bool] = False

  modalities: tuple[str, ...] = ("image",)
  labels: str = "label_nouns"
  form: str = "sigmoid"

  def __post_init__(self):
    if self.form not in FORMS:
      raise ValueError(f"form = {self.form!r} must be one of {FORMS}")

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the key of the labels."""
    return (self.labels,)

  def init(self, key: Array) -> Params:
    """Returns {}: the classes are parameters of a head."""
    del key
    return {}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, classes]}, logits -> (f32[], metrics).

    Raises:
      ValueError: the batch has no such labels.
    """
    del params
    if self.labels not in batch:
      raise ValueError(
        f"multilabel learns batch[{self.labels!r}], i32[b] or i32[b, n]; the batch has "
        f"{sorted(batch)}. Set its labels, or add a transform to config.data.transforms"
      )
    labels = batch[self.labels]
    labels = labels if labels.ndim == 2 else labels[:, None]
    some = labels >= 0
    count = jnp.sum(some.astype(jnp.float32), axis=1)
    valid = pairing.valid_rows(batch, labels.shape[0]) & (count > 0)
    whole = valid & pairing.valid_rows(batch, labels.shape[0], *self.modalities)
    metrics = {"multilabel/labels": pairing.masked_mean(count, whole)}
    terms = []
    for m in self.modalities:
      seen = valid & pairing.valid_rows(batch, labels.shape[0], m)
      logits = jnp.where(seen[:, None], z[m].astype(jnp.float32), 0.0)
      own = jnp.take_along_axis(logits, jnp.where(some, labels, 0), axis=1)
      own = jnp.sum(jnp.where(some, own, 0.0), axis=1)
      if self.form == "sigmoid":
        rows = jnp.sum(jax.nn.softplus(logits), axis=1) - own
      else:
        rows = jax.nn.logsumexp(logits, axis=1) - own / jnp.maximum(count, 1.0)
      terms.append(pairing.masked_mean(rows, seen))
      best = jnp.argmax(logits, axis=1)
      hit = jnp.any(some & (labels == best[:, None]), axis=1).astype(jnp.float32)
      metrics[f"multilabel/{m}"] = terms[-1]
      metrics[f"multilabel/top1_{m}"] = pairing.masked_mean(hit, seen)
    return jnp.mean(jnp.stack(terms)), metrics
