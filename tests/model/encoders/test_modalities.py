"""Video, tunes and waveforms: stems against loops, and padding that has no say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import base
from model import mel
from model.encoders import config as configs
from model.encoders import count, towers
from model.layers import log_mel, position
from model.layers.stem import Patches, TokenPatches
from tests.model.encoders.models import small
from tests.model.layers.filled import filled

KEY = jax.random.key(0)
RNG = np.random.default_rng(5)
LOG_MEL = dict(rate=1000, n_fft=32, hop=10)
OPTIONS = mel.LogMel(mels=4, **LOG_MEL)


def normal(*shape):
  return RNG.standard_normal(shape).astype(np.float32)


def test_tubelets_equal_a_strided_convolution_and_a_frame_masks_its_own():
  stem = Patches(width=8, size=(4, 6, 4, 3), patch=(2, 3, 2), position="none")
  x = normal(2, 4, 6, 4, 3)
  params = filled(stem, x)
  apply = jax.jit(stem.apply)
  tokens, mask = apply(params, x)
  kernel = params["params"]["embed"]["kernel"].reshape(2, 3, 2, 3, 8)
  want = jax.lax.conv_general_dilated(
    jnp.asarray(x),
    kernel,
    (2, 3, 2),
    "VALID",
    dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
  )
  want = want.reshape(2, 8, 8) + params["params"]["embed"]["bias"][None, None]
  np.testing.assert_allclose(tokens, want, atol=1e-5)
  assert mask is None
  frames = np.asarray([[1, 1, 1, 1], [1, 0, 0, 0]], bool)
  tokens, mask = apply(params, x, frames)
  np.testing.assert_array_equal(mask, [[1] * 8, [1] * 4 + [0] * 4])
  noise = np.where(frames[..., None, None, None], x, np.nan)
  np.testing.assert_array_equal(apply(params, noise, frames)[0], tokens)


def test_positions_of_three_dimensions():
  table = position.sincos((2, 3, 4), 12)
  assert table.shape == (24, 12) and len(np.unique(table.round(5), axis=0)) == 24
  np.testing.assert_array_equal(table[:12, 8:], table[:1, 8:].repeat(12, 0))
  with pytest.raises(ValueError, match=r"divisible by 6, got 16 \(16 % 6 = 4\)"):
    position.sincos((2, 2, 2), 16)
  stem = Patches(width=12, size=(4, 4, 4, 1), patch=(2, 2, 2), position="sincos")
  zeros = jnp.zeros((1, 4, 4, 4, 1))
  params = filled(stem, zeros)
  own = stem.apply(params, zeros)[0][0]
  longer = stem.apply(params, jnp.zeros((1, 8, 4, 4, 1)))[0][0]
  want = position.resize_positions(own, (2, 2, 2), (4, 2, 2))
  np.testing.assert_allclose(longer, want, atol=1e-6)


def test_a_patch_of_ids_is_the_sum_of_its_letters_at_their_places():
  stem = TokenPatches(width=6, vocab=5, size=(4, 3))
  ids = RNG.integers(0, 5, (2, 3, 3)).astype(np.int32)
  ids[1, 2] = 0
  params = filled(stem, ids)
  tokens, mask = jax.jit(stem.apply)(params, ids)
  p = jax.tree.map(np.asarray, params["params"])
  rows = p["embed"]["kernel"].reshape(3, 5, 6)
  for b, n in np.ndindex(2, 3):
    want = p["embed"]["bias"] + p["position"][n]
    for place, i in enumerate(ids[b, n]):
      want = want + (rows[place, i] if i else 0)
    np.testing.assert_allclose(tokens[b, n], want, atol=1e-5)
  np.testing.assert_array_equal(mask, ids.any(axis=-1))
  given = jnp.ones((2, 3), bool)
  np.testing.assert_array_equal(stem.apply(params, ids, given)[1], given)


def test_a_waveform_becomes_the_spectrogram_that_the_stem_takes_as_well():
  stem = Patches(width=8, size=(8, 4, 1), patch=(2, 4), log_mel=OPTIONS)
  x = normal(2, 80)
  real = np.arange(80) < np.array([[80], [31]])
  params = filled(stem, x)
  apply = jax.jit(stem.apply)
  tokens, mask = apply(params, x, real)
  made, frames = jax.jit(log_mel.log_mel, static_argnums=2)(x, real, OPTIONS)
  want, _ = apply(params, made, frames)
  np.testing.assert_allclose(tokens, want, atol=1e-5)
  np.testing.assert_array_equal(mask.sum(axis=1), [4, 2])


@pytest.mark.parametrize(
  ("stem", "x", "mask", "match"),
  [
    (Patches(4, (8, 4, 1), (2, 4)), (1, 80), None, "a waveform needs its log_mel"),
    (
      Patches(4, (8, 4, 1), (2, 4), log_mel=OPTIONS),
      (1, 80),
      (1, 8),
      r"image_mask has shape \(1, 8\), expected \(1, 80\)",
    ),
    (Patches(4, (8, 4, 1), (2, 4), log_mel=OPTIONS), (1, 90), None, r"9 % 2 = 1"),
    (Patches(4, (4, 4, 4, 3), (2, 2, 2)), (1, 4, 4, 3), None, r"expected \[b, 4, 4"),
    (Patches(4, (4, 4, 4, 3), (2, 2, 2)), (1, 3, 4, 4, 3), None, r"3 % 2 = 1"),
  ],
)
def test_what_a_stem_cannot_read(stem, x, mask, match):
  mask = None if mask is None else jnp.ones(mask, bool)
  with pytest.raises(ValueError, match=match):
    jax.eval_shape(lambda: stem.init(KEY, jnp.zeros(x), mask))


@pytest.mark.parametrize(
  ("x", "mask", "error", "match"),
  [
    ((1, 5, 3), None, ValueError, r"5 patches of 3 ids, .* 4 of .*patch = \(3,\)"),
    ((1, 4, 3), (1, 3), ValueError, "music_mask has shape"),
    ((1, 4), None, TypeError, r"expected int\[b, n, ids\]"),
  ],
)
def test_what_patches_of_ids_cannot_be(x, mask, error, match):
  stem = TokenPatches(width=6, vocab=5, size=(4, 3))
  mask = None if mask is None else jnp.ones(mask, bool)
  with pytest.raises(error, match=match):
    jax.eval_shape(lambda: stem.init(KEY, jnp.zeros(x, jnp.int32), mask))


def all_three():
  """A sparse model of a sound, a tune and a video in one trunk."""
  c = small(modalities=())
  c.modalities.audio = base.modality(size=(8, 4, 1), patch=(4, 4), log_mel=LOG_MEL)
  c.modalities.music = base.modality(
    stem="token_patches", vocab=7, length=3, patch=(4,)
  )
  c.modalities.video = base.modality(size=(4, 4, 4, 3), patch=(2, 4, 4))
  c.moe.losses.update(dict(local_entropy={}, global_entropy=dict(audio=1.0)))
  c.moe.min_experts.audio = 2.0
  return c


def batch_of(b=4):
  rows = np.arange(b)[:, None]
  return {
    "audio": normal(b, 80),
    "audio_mask": np.arange(80) < 80 - 35 * (rows % 2),
    "music": RNG.integers(1, 7, (b, 3, 4)).astype(np.int32),
    "music_mask": np.arange(3) < 3 - rows % 3,
    "video": normal(b, 4, 4, 4, 3),
    "video_mask": np.arange(4) < 4 - 2 * (rows % 2),
  }


def test_padding_neither_attends_nor_pools_nor_routes():
  model = towers.build(all_three())
  assert hash(model) == hash(towers.build(all_three()))
  batch = batch_of()
  params = filled(model, batch)

  @jax.jit
  def encode(batch):
    encoded, aux = model.apply(params, batch, train=False)
    return {m: e.pooled for m, e in encoded.items()}, aux

  other = dict(batch)
  for m in ("audio", "music", "video"):
    mask = batch[f"{m}_mask"]
    mask = mask.reshape(*mask.shape, *(1,) * (batch[m].ndim - 2))
    junk = RNG.permutation(batch[m].ravel()).reshape(batch[m].shape)
    other[m] = np.where(mask, batch[m], junk)
    assert (other[m] != batch[m]).any()
  want, want_aux = encode(batch)
  got, got_aux = encode(other)
  for m in want:
    np.testing.assert_allclose(got[m], want[m], atol=1e-6)
  for key in want_aux:
    np.testing.assert_allclose(got_aux[key], want_aux[key], atol=1e-6, err_msg=key)


def test_shapes_tokens_and_flops():
  audio, music, video = configs.modalities(all_three())
  assert (audio.shape, audio.dtype, audio.tokens) == ((80,), np.float32, 2)
  assert (music.shape, music.dtype, music.tokens) == ((3, 4), np.int32, 3)
  assert (video.shape, video.dtype, video.tokens) == ((4, 4, 4, 3), np.float32, 2)
  assert {m: a.shape for m, a in configs.example(all_three(), 2).items()} == {
    "audio": (2, 80),
    "music": (2, 3, 4),
    "video": (2, 4, 4, 4, 3),
  }
  flops = count.flops_per_example(all_three())
  stem = 2 * 2 * 2 * 4 * 4 * 3 * 16
  assert flops["video"] - flops["audio"] == stem - 2 * 2 * 4 * 4 * 16


@pytest.mark.parametrize(
  ("name", "changes", "match"),
  [
    ("audio", dict(log_mel=dict(mels=5)), r"log_mel.mels = 5, but .*audio.size = \(8"),
    ("audio", dict(log_mel=dict(hopp=5)), "unknown key .*log_mel.hopp: did you mean"),
    ("audio", dict(log_mel=LOG_MEL, gradients=(2, 2)), "without gradients and colors"),
    ("video", dict(patch=(2, 4)), r"expected \(height, width, channels\).*of a video"),
    ("video", dict(gradients=(2, 2)), "are of images, not of videos"),
    ("video", dict(position="sincos"), r"divisible by 6, got 16"),
    ("music", dict(patch=(4, 4)), r"music.patch = \(4, 4\), expected \(ids of a patch"),
    ("music", dict(length=0), "music.length = 0"),
    ("music", dict(ngrams=3), "ngrams are of stem 'tokens'"),
    ("music", dict(log_mel=LOG_MEL), "log_mel is of stem 'patches', not 'token_p"),
    ("music", dict(stem="token_patch"), "did you mean token_patches"),
  ],
)
def test_wrong_settings_name_their_keys(name, changes, match):
  c = all_three()
  for key, value in changes.items():
    c.modalities[name][key] = value
  with pytest.raises(ValueError, match=match):
    towers.build(c)
