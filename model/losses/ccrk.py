"""One thing against its texts in K languages, at once: 1-to-K (arXiv 2406.18254).

v_i: image, t_ik: its text in language k;  s = v . t / temperature
L = 1/2 mean_i [lse_{j,l}(v_i t_jl) - mean_k v_i t_ik]
  + 1/2 mean_{i,k} [lse_j(v_j t_ik) - v_i t_ik]

All texts of all languages compete in one softmax, so that no language is favoured. Each
direction is a mean of its own; the released code divides the second by K once too
often. With one language it is InfoNCE.
"""

import dataclasses

import jax.numpy as jnp

from model.losses import pairs as pairing
from model.losses import reduce
from model.losses import scale as scaling
from model.types import Array, Batch, Metrics, Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """1-to-K over the global batch; batch["<text>_valid"] bool[b] marks missing texts.

  Attributes:
    one: the modality of which there is one.
    many: the modalities of its texts, one a language; they may share a tower.
    temperature: at the start, or for good if not learned; divides cosine similarities.
    learned: whether the temperature is a parameter.
    max_scale: upper bound of 1 / temperature.
    strategy: of model.losses.reduce.
    tile: of model.losses.reduce.
  """

  one: str = "image"
  many: tuple[str, ...] = ("text", "text_2")
  temperature: float = 0.07
  learned: bool = True
  max_scale: float = 100.0
  strategy: str = "auto"
  tile: int | None = None

  def __post_init__(self):
    scaling.check(self.temperature, self.max_scale)
    names = self.modalities
    if (
      not isinstance(self.many, tuple) or len(set(names)) != len(names) or not names[1:]
    ):
      raise ValueError(f"many = {self.many!r} must be names other than {self.one!r}")

  @property
  def modalities(self) -> tuple[str, ...]:
    """Returns (one, *many)."""
    return (self.one, *self.many)

  def init(self, key: Array) -> Params:
    """Returns {"log_scale": f32[]}, or {} if the temperature is fixed."""
    del key
    return scaling.parameters(self.temperature, self.learned)

  def __call__(
    self, params: Params, z: dict[str, Array], batch: Batch
  ) -> tuple[Array, Metrics]:
    """z: {modality: [b, d]}, unit norm -> (f32[], metrics); mean over valid rows."""
    scale = scaling.inverse(params, self.temperature, self.max_scale)
    metrics = {"ccrk/temperature": 1 / scale}
    image = z[self.one]
    valid = pairing.valid_rows(batch, image.shape[0], self.one)
    totals, own, back, held = [], [], [], []
    for m in self.many:
      has = valid & jnp.asarray(batch.get(f"{m}_valid", valid), bool)
      rows, cols = reduce.symmetric_logsumexp(
        image, z[m], scale, valid=(valid, has), strategy=self.strategy, tile=self.tile
      )
      similarity = pairing.positive(image, z[m])
      totals.append(rows)
      own.append(jnp.where(has, scale * similarity, 0.0))
      back.append(jnp.where(has, cols - scale * similarity, 0.0))
      held.append(has.astype(jnp.float32))
      metrics[f"ccrk/{m}_to_{self.one}"] = pairing.masked_mean(back[-1], has)
      metrics[f"ccrk/positive_{self.one}_{m}"] = pairing.masked_mean(similarity, has)
    count = sum(held)
    counted = valid & (count > 0)
    target = sum(own) / jnp.maximum(count, 1.0)
    forth = pairing.masked_mean(pairing.log_total(*totals) - target, counted)
    metrics[f"ccrk/{self.one}_to_texts"] = forth
    texts = jnp.sum(sum(back)) / jnp.maximum(jnp.sum(count), 1.0)
    return (forth + texts) / 2, metrics
