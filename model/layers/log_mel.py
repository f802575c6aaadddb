"""Log-mel spectrograms on the device: see `model.mel` for what they are."""

import jax.numpy as jnp
import numpy as np

from model.mel import LogMel
from model.types import Array


def log_mel(
  x: Array, mask: Array | None, options: LogMel
) -> tuple[Array, Array | None]:
  """Returns the spectrogram of waveforms, and which of its frames are real.

  Two products of matrices, which every accelerator is made for: hop-sized blocks, side
  by side, are the frames, and a DFT of a few hundred samples needs no fast algorithm.

  Args:
    x: f32[b, samples].
    mask: bool[b, samples], True for a real sample; others count as 0.
    options: of the spectrogram.

  Returns:
    f32[b, frames, mels] and bool[b, frames]: whether the sample that a frame is
    centred on is real; None without a mask.
  """
  x = x.astype(jnp.float32)
  if mask is not None:
    x = jnp.where(mask, x, jnp.float32(0))
    mask = mask[:, :: options.hop]
  b, samples = x.shape
  frames, blocks = options.frames(samples), -(-options.n_fft // options.hop)
  whole = (frames + blocks - 1) * options.hop
  padded = jnp.pad(x, ((0, 0), (options.n_fft // 2, whole)))[:, :whole]
  padded = padded.reshape(b, -1, options.hop)
  shifted = [padded[:, i : i + frames] for i in range(blocks)]
  framed = jnp.concatenate(shifted, axis=-1)[..., : options.n_fft]
  # At full precision: beside loud bands, quiet ones would drown in the rounding.
  parts = jnp.matmul(framed, jnp.asarray(_dft(options)), precision="highest")
  real, imaginary = jnp.split(parts, 2, axis=-1)
  power = real**2 + imaginary**2
  filters = jnp.asarray(options.filters, jnp.float32)
  bands = jnp.matmul(power, filters, precision="highest")
  logs = jnp.log(jnp.maximum(bands, jnp.float32(options.floor)))
  return (logs - options.mean) / options.std, mask


def _dft(options: LogMel) -> np.ndarray:
  """Returns f32[n_fft, 2 * (n_fft // 2 + 1)]: the window, times cosines and sines."""
  n = options.n_fft
  # Whole turns left out, in integers: angles stay small, and exact.
  turns = np.outer(np.arange(n), np.arange(n // 2 + 1)) % n
  angle = 2 * np.pi * turns / n
  waves = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
  return (options.window[:, None] * waves).astype(np.float32)
