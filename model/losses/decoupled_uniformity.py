"""Uniformity of the centroids of views: decoupled uniformity (arXiv 2206.01646).

L = log mean_{i != j} exp(-t ||m_i - m_j||^2),  m_i = mean_v z_vi, not normalised

There is no term that pulls views together: those that agree have a longer centroid,
which can be spread further. With a prior, what is known of the examples besides their
views (the latent of a generative model, weak attributes), centroids are first averaged
over examples that are alike: m~ = W m, W = (K + ridge I)^-1 K, K_ij = exp(-||
p_i - p_j||^2 / (2 width^2)), or cos(p_i, p_j). That takes memory O(b^2) and time
O(b^3); without a prior it is O(b * tile). Nothing flows back into the prior.
"""

import dataclasses

import jax
from jax import lax
import jax.numpy as jnp

from model.losses import distance
from model.losses import pairs as pairing
from model.types import Array, Batch, Metrics, Params

KERNELS = ("rbf", "cosine")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """Decoupled uniformity over the global batch; views are modalities.

  Attributes:
    modalities: the modalities whose mean is the centroid, at least one.
    t: of the uniformity.
    prior: the batch's f32[b, p] to average centroids by; rows of p > 1 zeros,
      unlabelled, are left out. None: centroids stay as they are.
    kernel: of the prior, "rbf" or "cosine".
    width: of the rbf kernel, in the units of the prior.
    ridge: of the kernel's inverse; 0 takes the paper's 1 / sqrt(valid rows).
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  modalities: tuple[str, ...] = ("image", "text")
  t: float = 2.0
  prior: str | None = None
  kernel: str = "rbf"
  width: float = 1.0
  ridge: float = 0.01
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    if isinstance(self.modalities, str) or not self.modalities:
      raise ValueError(
        f"modalities = {self.modalities!r} must be a tuple of modality names"
      )
    if self.kernel not in KERNELS:
      raise ValueError(f"kernel = {self.kernel!r} must be one of {KERNELS}")
    if not (self.t > 0 and self.width > 0 and self.ridge >= 0):
      raise ValueError(
        f"t = {self.t} and width = {self.width} must be above 0, "
        f"ridge = {self.ridge} at least 0"
      )

  @property
  def reads(self) -> tuple[str, ...]:
    """The keys of the batch, besides modalities, that the loss needs."""
    return (self.prior,) if self.prior else ()

  def init(self, key: Array) -> Params:
    """Returns {}: nothing is learned."""
    del key
    return {}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); over valid rows.

    Raises:
      ValueError: the batch has no such prior.
    """
    del params
    views = jnp.stack([z[v].astype(jnp.float32) for v in self.modalities])
    centroids = jnp.mean(views, axis=0)
    valid = pairing.valid_rows(batch, centroids.shape[0], *self.modalities)
    if self.prior is not None:
      if self.prior not in batch:
        raise ValueError(
          f"the batch has no {self.prior!r} (prior of decoupled_uniformity), only "
          f"{sorted(batch)}"
        )
      valid &= pairing.labelled(batch[self.prior])
    length = pairing.masked_mean(pairing.positive(centroids, centroids), valid)
    if self.prior is not None:
      weights = lax.stop_gradient(self._weights(batch[self.prior], valid))
      kept = jnp.where(valid[:, None], centroids, 0.0)
      centroids = jnp.matmul(weights, kept, precision=lax.Precision.HIGHEST)
    loss = distance.uniformity(
      centroids,
      centroids,
      self.t,
      valid=valid,
      strategy=self.strategy,
      tile=self.tile,
    )
    return loss, {"decoupled_uniformity/centroid_square": length}

  def _weights(self, prior: Array, valid: Array) -> Array:
    """Returns f32[b, b]: (K + ridge I)^-1 K over the valid rows, 0 elsewhere."""
    p = jnp.where(valid[:, None], prior.astype(jnp.float32), 0.0)
    if self.kernel == "cosine":
      square = jnp.sum(p * p, axis=-1, keepdims=True)
      p *= lax.rsqrt(jnp.maximum(square, 1e-12))
      k = jnp.matmul(p, p.T, precision=lax.Precision.HIGHEST)
    else:
      x, y = distance.lifted(p, p)
      square = -jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)
      k = jnp.exp(-jnp.maximum(square, 0.0) / (2 * self.width**2))
    k = jnp.where(valid[:, None] & valid[None, :], k, 0.0)
    count = jnp.maximum(jnp.sum(valid.astype(jnp.float32)), 1.0)
    ridge = self.ridge or lax.rsqrt(count)
    return jax.scipy.linalg.solve(
      k + ridge * jnp.eye(k.shape[0], dtype=jnp.float32), k, assume_a="pos"
    )
