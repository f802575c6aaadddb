"""A waveform to its log-mel spectrogram, on the host."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import numpy as np

from input_pipeline.interfaces import Example
from model import mel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transform(mel.LogMel):
  """Writes `<modality>` f32[frames, mels] and `<modality>_mask` bool[frames].

  A frame is real where the sample that it is centred on is. The device makes the same
  of config.model.modalities.<modality>.log_mel, and then needs no such transform.

  Attributes:
    modality: of config.model.modalities; mels is taken from its size.
    key: the waveform f32[samples]; its `_mask` is read too, and its `_rate` if given.
  """

  modality: str = "audio"
  key: str = "waveform"

  @classmethod
  def defaults(cls, config: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `mels`, the width of the modality.

    Raises:
      ValueError: another one in the options, or a modality that reads waveforms.
    """
    name = options.get("modality", "audio")
    modality = config.model.modalities.get(name)
    if modality is None or len(modality.size) != 3:
      return {}
    where = f"config.model.modalities.{name}"
    if modality.get("log_mel"):
      raise ValueError(
        f"transform log_mel writes a spectrogram, but {where}.log_mel makes it of the "
        "waveform on the device: remove one of them"
      )
    mels = modality.size[1]
    if options.get("mels", mels) != mels:
      raise ValueError(
        f"log_mel.mels = {options['mels']}, but {where}.size = {tuple(modality.size)} "
        f"reads (frames, mels, 1): {mels} mels"
      )
    return {"mels": mels}

  @property
  def reads(self) -> tuple[str, ...]:
    """Returns the keys of the waveform and of its mask."""
    return (self.key, f"{self.key}_mask")

  @property
  def writes(self) -> tuple[str, ...]:
    """Returns the keys of the spectrogram and of its mask."""
    return (self.modality, f"{self.modality}_mask")

  def __call__(self, example: Example, rng: np.random.Generator) -> Example:
    """Returns the example with the spectrogram; the waveform is left out.

    Raises:
      ValueError: a waveform of another rate.
    """
    del rng
    rate = example.get(f"{self.key}_rate", self.rate)
    if rate != self.rate:
      raise ValueError(
        f"log_mel.rate = {self.rate}, but {self.key!r} has {rate} samples per second: "
        "give log_mel and decode_audio in config.data.transforms the same rate"
      )
    made = mel.log_mel(example[self.key], self)
    mask = example[f"{self.key}_mask"][:: self.hop]
    gone = (self.key, f"{self.key}_mask", f"{self.key}_rate")
    left = {k: v for k, v in example.items() if k not in gone}
    return left | {self.modality: made, f"{self.modality}_mask": mask}
