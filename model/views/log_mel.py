"""A view of a waveform as a spectrogram, so that other views can change that."""

import dataclasses

from model import mel
from model.layers import log_mel
from model.types import Array, Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class View(mel.LogMel):
  """Makes a log-mel spectrogram of a batch's waveforms; nothing is random.

  The stem makes the same of config.model.modalities.<m>.log_mel by itself, and takes
  what is a spectrogram already: this one is for what comes between, such as
  spec_augment. Its options must be those of the modality, and `mels` its size[1], or
  the run is refused: evaluation sees no views.

  Attributes:
    modality: of the batch.
  """

  modality: str = "audio"

  def __call__(self, batch: Batch, key: Array) -> Batch:
    """Returns the batch with f32[b, frames, mels], and bool[b, frames] of its mask.

    Raises:
      ValueError: what is no batch of waveforms.
    """
    del key
    x, mask = batch[self.modality], batch.get(f"{self.modality}_mask")
    if x.ndim != 2:
      raise ValueError(f"log_mel reads waveforms [b, s]; {self.modality} is {x.shape}")
    made, mask = log_mel.log_mel(x, mask, self)
    masks = {} if mask is None else {f"{self.modality}_mask": mask}
    return {**batch, self.modality: made, **masks}
