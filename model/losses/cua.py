"""CLIP with uniformity and alignment, which close the gap (arXiv 2405.18570).

L = infonce + ||a_i - b_i||^2 averaged + 1/2 U(a, a) + 1/2 U(b, b) + w U(a, b),
U(x, y) = log mean_{i != j} exp(-2 ||x_i - y_j||^2)

w = 0 is CUA, w = 1 is CUAXU. The temperature of the first term is fixed: 0.01 in the
paper's fine-tuning of a trained CLIP; the default is CLIP's own at the start.
"""

import dataclasses
from typing import Any

from model.losses import distance, infonce
from model.losses import pairs as pairing
from model.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """CUA (or, with across = 1, CUAXU) over the global batch.

  Attributes:
    pairs: of modalities; the loss is the mean over pairs.
    temperature: of the InfoNCE term, fixed.
    align: weight of the squared distance of pairs.
    uniform: weight of the uniformity within each modality.
    across: weight of the uniformity between the rows of one modality and the rows of
      the other that are not their own.
    t: of the uniformity.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  pairs: tuple[pairing.Pair, ...] = (("image", "text"),)
  temperature: float = 0.07
  align: float = 1.0
  uniform: float = 1.0
  across: float = 0.0
  t: float = 2.0
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    pairing.check(self.pairs)
    if not (self.temperature > 0 and self.t > 0):
      raise ValueError(
        f"temperature = {self.temperature} and t = {self.t} must be above 0"
      )

  def init(self, key: Array) -> Params:
    """Returns {}: the temperature is fixed."""
    del key
    return {}

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); over valid rows."""
    del params
    how: dict[str, Any] = dict(strategy=self.strategy, tile=self.tile)
    clip = infonce.Loss(
      pairs=self.pairs,
      temperature=self.temperature,
      learned=False,
      max_scale=1 / self.temperature,
      **how,
    )
    loss, _ = clip({}, z, batch)
    metrics = {"cua/infonce": loss}
    for a, b in self.pairs:
      valid = pairing.valid_rows(batch, z[a].shape[0], a, b)
      gap = pairing.masked_mean(distance.squared(z[a], z[b]), valid)
      metrics[f"cua/align_{a}_{b}"] = gap
      term = self.align * gap
      weights = (
        (a, a, self.uniform / 2),
        (b, b, self.uniform / 2),
        (a, b, self.across),
      )
      for x, y, weight in weights:
        if weight:
          u = distance.uniformity(z[x], z[y], self.t, valid=valid, **how)
          metrics[f"cua/uniform_{x}_{y}"] = u
          term += weight * u
      loss += term / len(self.pairs)
    return loss, metrics
