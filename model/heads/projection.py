"""A projection head: an MLP between the embedding and the loss, as in SimCLR.

[dense, batch norm, ReLU] * (layers - 1), dense, [batch norm]

The loss shapes what leaves the head; what is wanted later is what enters it (arXiv
2002.05709, section 4.2). Two layers there, three in SimCLR v2 (arXiv 2006.10029).
"""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp

from model.types import Array, Encoded, Params

NORMS = ("batch", "none")
EPSILON = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Head:
  """One MLP on `pooled`, shared by all the names that it is put on.

  Batch norm takes its statistics from all of these names' rows together, of the global
  batch, in training and otherwise: it keeps no averages. Rows without a real token, as
  those that are not valid have, count for nothing.

  Attributes:
    layers: matrices, at least 1.
    hidden: width of all but the last; 0: that of the input.
    out: width of the last.
    norm: "batch" | "none", after all but the last.
    last_norm: also after the last, without scale and offset.
  """

  layers: int = 2
  hidden: int = 0
  out: int = 128
  norm: str = "batch"
  last_norm: bool = False

  def __post_init__(self):
    if self.layers < 1 or self.hidden < 0 or self.out < 1 or self.norm not in NORMS:
      raise ValueError(
        f"projection has layers = {self.layers}, hidden = {self.hidden}, out = "
        f"{self.out}, norm = {self.norm!r}; expected layers and out of at least 1, "
        f"hidden of 0 or more, and norm one of {NORMS}"
      )

  def init(self, key: Array, spec: Mapping[str, Encoded]) -> Params:
    """Returns {"layer<i>": {"kernel": [in, out], "bias" | "scale", "offset": [out]}}.

    Raises:
      ValueError: names whose embeddings differ in width.
    """
    widths = {name: e.pooled.shape[-1] for name, e in spec.items()}
    if len(set(widths.values())) > 1:
      raise ValueError(
        f"projection is shared by embeddings of different width: {widths}"
      )
    width = next(iter(widths.values()))
    params = {}
    for i in range(self.layers):
      last = i == self.layers - 1
      out = self.out if last else self.hidden or width
      # He's: half of what a ReLU gets is lost.
      gain = jnp.sqrt((1.0 if last else 2.0) / width)
      kernel = gain * jax.random.normal(jax.random.fold_in(key, i), (width, out))
      params[f"layer{i}"] = {"kernel": kernel, **self._affine(last, out)}
      width = out
    return params

  def __call__(
    self, params: Params, encoded: Mapping[str, Encoded], key: Array, train: bool
  ) -> dict[str, Encoded]:
    """Returns encoded with pooled f32[b, out]; tokens and masks as they are."""
    del key, train
    names = list(encoded)
    x = jnp.stack([encoded[n].pooled.astype(jnp.float32) for n in names])
    real = jnp.stack([_real(encoded[n]) for n in names])
    for i in range(self.layers):
      p, last = params[f"layer{i}"], i == self.layers - 1
      x = x @ p["kernel"]
      if self._normed(last):
        x = batch_norm(x, real)
      x = _affine(x, p)
      if not last:
        x = jax.nn.relu(x)
    return {n: dataclasses.replace(encoded[n], pooled=v) for n, v in zip(names, x)}

  def _normed(self, last: bool) -> bool:
    return self.last_norm if last else self.norm == "batch"

  def _affine(self, last: bool, out: int) -> Params:
    if not self._normed(last):
      return {"bias": jnp.zeros(out)}
    # What batch norm would take away again, a layer before it need not add.
    return {} if last else {"scale": jnp.ones(out), "offset": jnp.zeros(out)}


def batch_norm(x: Array, real: Array) -> Array:
  """Returns x f32[v, b, w] with mean 0 and variance 1 over the rows real bool[v, b]."""
  keep = real[..., None]
  count = jnp.maximum(jnp.sum(keep.astype(jnp.float32)), 1.0)
  mean = jnp.sum(jnp.where(keep, x, 0.0), axis=(0, 1)) / count
  x = x - mean[None, None]
  # After the mean, in a second pass: E[x^2] - E[x]^2 cancels.
  variance = jnp.sum(jnp.where(keep, x * x, 0.0), axis=(0, 1)) / count
  return x * jax.lax.rsqrt(variance + EPSILON)[None, None]


def _affine(x: Array, p: Params) -> Array:
  if "scale" in p:
    x = x * p["scale"][None, None] + p["offset"][None, None]
  return x + p["bias"][None, None] if "bias" in p else x


def _real(e: Encoded) -> Array:
  """Returns bool[b]: the examples of which there is anything."""
  if e.mask is None:
    return jnp.ones(e.pooled.shape[0], bool)
  return jnp.any(e.mask, axis=1)
