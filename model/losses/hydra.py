"""Any two classes as a positive pair, in a subspace: Hydra (arXiv 2410.18200).

g = sigmoid(W relu(e_c + e_c') + u) for a row whose sides are of classes c and c',
L = -mean over positives of log[exp(s_ij) / sum_k exp(s_ik)], both directions,
s_ij = (g_i * a_i) . (g_i * b_j) / t

The sampler pairs rows: one row holds an example of class c and one of class c', which
need not be alike. Both are seen through the gate of their pair, and so is all they are
compared with; every b_j of class c' is a positive. The gate is symmetric in the
classes, learned with the encoder, and gone at test time. `renormalize` divides s_ij by
||g_i * a_i|| ||g_i * b_j||, as the first version did; that needs [b, b] scores.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce, reductions
from model.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """Hydra (later SimLAP) over the global batch, both directions.

  Attributes:
    pairs: of modalities or views; the loss is the mean over pairs.
    dim: d of the embeddings.
    classes: how many there are; labels are below it.
    labels: the batch's i32[b] of the first and of the second of a pair; rows of -1,
      unlabelled, are left out.
    hidden: width of the gate's hidden layer.
    temperature: t, fixed.
    renormalize: gated embeddings to unit norm.
    penalty: weight of mean g (1 - g), which drives gates to 0 or 1.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  dim: int = 512
  classes: int = 1000
  labels: tuple[str, str] = ("label", "label")
  hidden: int = 128
  temperature: float = 0.1
  renormalize: bool = False
  penalty: float = 0.0
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    if isinstance(self.labels, str) or len(self.labels) != 2:
      raise ValueError(f"labels = {self.labels!r} must be two keys of the batch")
    if not self.temperature > 0:
      raise ValueError(f"temperature = {self.temperature} must be above 0")

  @property
  def reads(self) -> tuple[str, ...]:
    """The keys of the batch, besides modalities, that the loss needs."""
    return self.labels

  def init(self, key: Array) -> Params:
    """Returns {"table": [classes, hidden], "kernel": [hidden, dim], "bias": [dim]}."""
    table, kernel = jax.random.split(key)
    spread = self.hidden**-0.5
    return {
      "table": jax.random.normal(table, (self.classes, self.hidden)),
      "kernel": spread * jax.random.normal(kernel, (self.hidden, self.dim)),
      "bias": jnp.zeros(self.dim),
    }

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid positives.

    A label beyond the classes makes the loss nan.

    Raises:
      ValueError: embeddings not of `dim`, or a batch without the labels.
    """
    metrics: Metrics = {}
    terms = []
    for a, b in self.pairs:
      self._check(z[a], batch)
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      for key in self.labels:
        valid &= batch[key] >= 0
      classes = [jnp.where(valid, batch[k], 0) for k in self.labels]
      gate = self.gate(params, *classes)
      sides = (z[a], z[b], classes[1]), (z[b], z[a], classes[0])
      forth, back = (self._direction(gate, *side, valid) for side in sides)
      binary = pairing.masked_mean(jnp.mean(gate * (1 - gate), axis=-1), valid)
      terms.append((forth + back) / 2 + self.penalty * binary)
      metrics |= {
        f"hydra/{a}_to_{b}": forth,
        f"hydra/{b}_to_{a}": back,
        f"hydra/gate_{a}_{b}": pairing.masked_mean(jnp.mean(gate, axis=-1), valid),
        f"hydra/binary_{a}_{b}": binary,
      }
    return jnp.mean(jnp.stack(terms)), metrics

  def gate(self, params: Params, first: Array, second: Array) -> Array:
    """Returns f32[k, d] in (0, 1) of the class pairs (first i32[k], second i32[k])."""
    own, other = (
      params["table"]
      .at[c]
      .get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
      for c in (first, second)
    )
    hidden = jax.nn.relu(own + other)
    logits = reductions.dot(hidden, params["kernel"], (1, 0)) + params["bias"][None, :]
    return jax.nn.sigmoid(logits)

  def _direction(
    self, gate: Array, x: Array, y: Array, kinds: Array, valid: Array
  ) -> Array:
    """Returns f32[]: rows x against columns y, which are of classes `kinds`."""
    # Squared, as it gates both sides of the product.
    rows = gate * gate * x.astype(jnp.float32)
    if self.renormalize:
      lse, own = self._unit_rows(rows, gate, x, y, kinds, valid)
    else:
      how: dict[str, Any] = dict(valid=valid, strategy=self.strategy, tile=self.tile)
      lse = reduce.row_logsumexp(rows, y, 1 / self.temperature, **how)
      own = reduce.pair_sum(
        _where_same, rows, y, 1 / self.temperature, positive=(kinds, kinds), **how
      )
    each = jnp.zeros(self.classes).at[kinds].add(valid.astype(jnp.float32))[kinds]
    # Not where(valid, each * lse - own, 0): without any column lse is -inf, each 0.
    lse = jnp.where(valid, lse, 0.0)
    total = jnp.sum(jnp.where(valid, each * lse - own, 0.0))
    return total / jnp.maximum(jnp.sum(jnp.where(valid, each, 0.0)), 1.0)

  def _unit_rows(
    self, rows: Array, gate: Array, x: Array, y: Array, kinds: Array, valid: Array
  ) -> tuple[Array, Array]:
    """Returns f32[b]: lse_i over all columns, and the sum of s_ij over positives."""
    x, y = x.astype(jnp.float32), jnp.where(valid[:, None], y.astype(jnp.float32), 0.0)
    square = jnp.sum(rows * x, axis=-1, keepdims=True)
    square *= reductions.dot(gate * gate, y * y, (1, 1))
    s = reductions.dot(rows, y, (1, 1)) * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
    s /= self.temperature
    same = (kinds[:, None] == kinds[None, :]) & valid[None, :]
    # A row that is not valid is given itself, to have a finite logarithm.
    everyone = valid[None, :] | jnp.eye(s.shape[0], dtype=bool)
    lse = jax.nn.logsumexp(s, axis=1, where=everyone)
    return lse, jnp.sum(jnp.where(same, s, 0.0), axis=1)

  def _check(self, x: Array, batch: Batch) -> None:
    if x.shape[-1] != self.dim:
      raise ValueError(
        f"dim = {self.dim} of hydra must be that of the embeddings, {x.shape[-1]} "
        "(config.model.embed_dim)"
      )
    for key in self.reads:
      if key not in batch:
        raise ValueError(
          f"the batch has no {key!r} (labels of hydra), only {sorted(batch)}"
        )


def _where_same(s: Array, same: Array) -> Array:
  return jnp.where(same, s, 0.0)
