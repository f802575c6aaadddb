"""InfoNCE with a kernel of the distance: Kernel-InfoNCE (arXiv 2303.15103).

L = -mean_i log[k(a_i, b_i) / sum_j k(a_i, b_j)], both directions,
k(a, b) = exp(-||a - b||^gamma / t)

gamma = 2 is the Gaussian of InfoNCE, whose temperature is then t / 2 (on the unit
sphere ||a - b||^2 = 2 - 2 a . b); 1 is the Laplacian; below 1 the tail is heavier. A
mixture adds the loss of a Gaussian kernel, on the same embedding ("sum") or each on one
half of it ("concat"). The released code adds 1e-6 to the denominator, which outweighs
the kernels at its own temperature; here it is an exact logsumexp.
"""

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any

import jax.numpy as jnp

from model.losses import distance, reduce
from model.losses import pairs as pairing
from model.types import Array, Batch, Metrics, Params

MIXTURES = ("sum", "concat")
_NEAREST = 1e-9  # squared; nearer pairs have no slope: that of the root is infinite


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """Kernel-InfoNCE, both directions, over the global batch.

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    gamma: power of the distance; the released code starts from 2, the Gaussian.
    temperature: t, fixed.
    share: of the kernel of power gamma; the Gaussian has the rest.
    mixture: "sum" or "concat".
    within: also against the other rows of the query's own modality, as in SimCLR, for
      pairs that are two views.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  gamma: float = 1.0
  temperature: float = 0.1
  share: float = 1.0
  mixture: str = "sum"
  within: bool = False
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    if not (self.gamma > 0 and self.temperature > 0):
      raise ValueError(
        f"gamma = {self.gamma} and temperature = {self.temperature} must be above 0"
      )
    if not 0 <= self.share <= 1:
      raise ValueError(f"share = {self.share} must be in [0, 1]")
    if self.mixture not in MIXTURES:
      raise ValueError(f"mixture = {self.mixture!r} must be one of {MIXTURES}")

  def init(self, key: Array) -> Params:
    """Returns {}: nothing is learned."""
    del key
    return {}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows."""
    del params
    metrics: Metrics = {}
    terms = []
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      forth, back = jnp.float32(0), jnp.float32(0)
      for share, gamma, x, y in self._kernels(z[a], z[b]):
        rows, cols = self._denominators(x, y, gamma, valid)
        own = self._log_kernel(gamma, -distance.squared(x, y))
        forth += share * pairing.masked_mean(rows - own, valid)
        back += share * pairing.masked_mean(cols - own, valid)
      metrics |= {
        f"kernel_infonce/{a}_to_{b}": forth,
        f"kernel_infonce/{b}_to_{a}": back,
      }
      terms += [forth, back]
    return jnp.mean(jnp.stack(terms)), metrics

  def _kernels(self, x: Array, y: Array) -> Iterator[tuple[float, float, Array, Array]]:
    """Yields (share, gamma, rows, columns) of each kernel of the mixture."""
    half = x.shape[-1] // 2
    split = self.mixture == "concat"
    first, second = (slice(half), slice(half, None)) if split else (slice(None),) * 2
    if self.share > 0:
      yield self.share, self.gamma, x[:, first], y[:, first]
    if self.share < 1:
      yield 1 - self.share, 2.0, x[:, second], y[:, second]

  def _denominators(
    self, x: Array, y: Array, gamma: float, valid: Array
  ) -> tuple[Array, Array]:
    """Returns log sum_j k(x_i, y_j) and log sum_i k(x_i, y_j), f32[b] each."""
    how: dict[str, Any] = dict(
      valid=valid,
      fn=functools.partial(self._log_kernel, gamma),
      strategy=self.strategy,
      tile=self.tile,
    )
    rows, cols = reduce.symmetric_logsumexp(*distance.lifted(x, y), 1.0, **how)
    if self.within:
      how["exclude"] = "diagonal"
      alike = [reduce.row_logsumexp(*distance.lifted(v, v), 1.0, **how) for v in (x, y)]
      rows, cols = jnp.logaddexp(rows, alike[0]), jnp.logaddexp(cols, alike[1])
    return rows, cols

  def _log_kernel(self, gamma: float, s: Array, same: Array | None = None) -> Array:
    """Returns -d^gamma / t of s = -d^2, elementwise."""
    del same
    if gamma == 2:
      return s / self.temperature
    return -(jnp.maximum(-s, _NEAREST) ** (gamma / 2)) / self.temperature
