"""Bands of time and frequency blanked out: SpecAugment (arXiv 1904.08779, section 2).

Without the paper's time warping, which it found to matter least.
"""

import dataclasses

import jax
import jax.numpy as jnp

from model.types import Array, Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
  """Blanks bands of a spectrogram; each example by draws of its own.

  A band's width is uniform from 0 to the greatest, and so is its place. Those of time
  lie among the real frames; what is blanked stays real to the batch's mask.

  Attributes:
    modality: of the batch: f32[b, t, f], or [b, t, f, 1].
    time_masks: bands of time, m_T.
    time_width: greatest width in frames, T.
    time_share: greatest width over the real frames of the example, p.
    frequency_masks: bands of frequency, m_F.
    frequency_width: greatest width in features, F.
    value: what is put there; 0 is the mean of a standardised spectrogram.

  Raises:
    ValueError: an option out of its range.
  """

  modality: str = "audio"
  time_masks: int = 2
  time_width: int = 40
  time_share: float = 0.2
  frequency_masks: int = 2
  frequency_width: int = 15
  value: float = 0.0

  def __post_init__(self):
    for key in ("time_masks", "time_width", "frequency_masks", "frequency_width"):
      if getattr(self, key) < 0:
        raise ValueError(
          f"spec_augment.{key} = {getattr(self, key)}, expected 0 or more"
        )
    if not 0 <= self.time_share <= 1:
      raise ValueError(f"spec_augment.time_share = {self.time_share} must be in [0, 1]")

  def __call__(self, batch: Batch, key: Array) -> Batch:
    """Returns the batch with bands of its modality blanked, of the same shape.

    Raises:
      ValueError: what is no batch of spectrograms.
    """
    x, mask = batch[self.modality], batch.get(f"{self.modality}_mask")
    if x.shape[3:] not in ((), (1,)) or x.ndim < 3:
      raise ValueError(
        f"spec_augment blanks bands of spectrograms [b, t, f]; {self.modality} is "
        f"{x.shape}. Of a waveform, make one first: the view log_mel"
      )
    b, frames, features = x.shape[:3]
    length = jnp.full((b,), frames) if mask is None else jnp.sum(mask, axis=1)
    length = length.astype(jnp.float32)
    time_key, frequency_key = jax.random.split(key)
    widest = jnp.minimum(jnp.float32(self.time_width), self.time_share * length)
    blank = _bands(time_key, self.time_masks, widest, length, frames)[:, :, None]
    length = jnp.full((b,), jnp.float32(features))
    widest = jnp.minimum(jnp.float32(self.frequency_width), length)
    across = _bands(frequency_key, self.frequency_masks, widest, length, features)
    blank = (blank | across[:, None, :]).reshape(x.shape)
    return {
      **batch,
      self.modality: jnp.where(blank, jnp.asarray(self.value, x.dtype), x),
    }


def _bands(key: Array, count: int, widest: Array, length: Array, n: int) -> Array:
  """Returns bool[b, n]: where one of `count` bands lies.

  Args:
    key: of the draws.
    count: bands.
    widest: f32[b], greatest width.
    length: f32[b]: the bands lie in [0, length).
    n: places.
  """
  draw = jax.random.uniform(key, (2, length.shape[0], count))
  width = jnp.floor(draw[0] * (jnp.floor(widest) + 1)[:, None])
  start = jnp.floor(draw[1] * (length[:, None] - width + 1))
  at = jnp.arange(n, dtype=jnp.float32)[None, None]
  inside = (at >= start[..., None]) & (at < (start + width)[..., None])
  return jnp.any(inside, axis=1)
