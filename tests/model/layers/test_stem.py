import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.layers import position
from model.layers.stem import Patches, Tokens
from tests.model.layers.filled import filled

KEY = jax.random.key(0)


def image(h=8, w=12, c=3, b=2):
  return jax.random.normal(KEY, (b, h, w, c))


def test_patches_equal_a_strided_convolution():
  stem = Patches(width=16, size=(8, 12, 3), patch=(4, 6), position="none")
  params = filled(stem, image())
  tokens, mask = stem.apply(params, image())
  kernel = params["params"]["embed"]["kernel"].reshape(4, 6, 3, 16)
  want = jax.lax.conv_general_dilated(
    image(), kernel, (4, 6), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  want = want.reshape(2, 4, 16) + params["params"]["embed"]["bias"][None, None]
  np.testing.assert_allclose(tokens, want, atol=1e-5)
  assert mask is None and "position" not in params["params"]


def test_learned_and_sincos_positions_are_added():
  for kind in ("learned", "sincos"):
    stem = Patches(width=16, size=(8, 8, 1), patch=(4, 4), position=kind)
    zeros = jnp.zeros((1, 8, 8, 1))
    params = filled(stem, zeros)
    tokens, _ = stem.apply(params, zeros)
    want = position.sincos_2d((2, 2), 16)
    if kind == "learned":
      want = params["params"]["position"]
      assert want.shape == (4, 16)
    want = want + params["params"]["embed"]["bias"][None]
    np.testing.assert_allclose(tokens[0], want, atol=1e-6)


@pytest.mark.parametrize("kind", ["learned", "sincos"])
def test_an_image_of_another_size_gets_interpolated_positions(kind):
  stem = Patches(width=16, size=(8, 8, 1), patch=(4, 4), position=kind)
  params = filled(stem, jnp.zeros((1, 8, 8, 1)))
  own, _ = stem.apply(params, jnp.zeros((1, 8, 8, 1)))
  tokens, _ = stem.apply(params, jnp.zeros((1, 16, 8, 1)))
  want = position.resize_positions(own[0], (2, 2), (4, 2))
  np.testing.assert_allclose(tokens[0], want, atol=1e-6)


def test_features_may_be_shorter_and_keep_their_first_positions():
  stem = Patches(width=16, size=(8, 4, 1), patch=(2, 2), name_of="audio")
  x = jax.random.normal(KEY, (2, 8, 4))
  params = filled(stem, x)
  whole, _ = stem.apply(params, x)
  part, _ = stem.apply(params, x[:, :6])
  np.testing.assert_allclose(part, whole[:, :6], atol=1e-6)
  with pytest.raises(ValueError, match=r"audio is \[b, 10, 4\].*at most 8 frames"):
    stem.apply(params, jnp.zeros((2, 10, 4)))
  with pytest.raises(ValueError, match=r"at most 8 frames of 4 features"):
    stem.apply(params, jnp.zeros((2, 8, 6)))


def test_padded_frames_reach_no_token_and_mask_the_patches_without_any_real_one():
  stem = Patches(width=16, size=(8, 4, 1), patch=(2, 2), name_of="audio")
  x = jax.random.normal(KEY, (1, 8, 4))
  frames = jnp.asarray(
    [[1, 1, 1, 0, 0, 0, 0, 0]], bool
  )  # the second patch is half real
  params = filled(stem, x)
  tokens, mask = stem.apply(params, x, frames)
  np.testing.assert_array_equal(mask, [[1, 1, 1, 1, 0, 0, 0, 0]])
  noise = jnp.where(frames[..., None], x, jnp.nan)
  np.testing.assert_array_equal(stem.apply(params, noise, frames)[0], tokens)
  with pytest.raises(ValueError, match=r"audio_mask has shape \(1, 4\), expec"):
    stem.apply(params, x, frames[:, :4])


def test_tokens_embed_ids_and_hide_the_padding_id():
  stem = Tokens(width=16, vocab=9, length=6)
  ids = jnp.asarray([[3, 1, 0, 8], [0, 0, 0, 0]])
  params = filled(stem, ids)
  tokens, mask = stem.apply(params, ids)
  table = params["params"]
  assert table["position"].shape == (6, 16)
  want = table["embed"]["embedding"][ids] + table["position"][None, :4]
  np.testing.assert_allclose(tokens, want, atol=1e-6)
  np.testing.assert_array_equal(mask, ids != 0)
  given = jnp.ones((2, 4), bool)
  np.testing.assert_array_equal(stem.apply(params, ids, given)[1], given)


@pytest.mark.parametrize(
  ("options", "want"),
  [
    ({}, [[1, 1, 0, 1, 0], [1, 0, 1, 1, 1]]),
    (dict(pad=-1), [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
    (dict(pad=2), [[1, 0, 1, 0, 1], [0, 1, 1, 1, 1]]),
    (dict(pad=-1, eos=8), [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]]),
    (dict(eos=2), [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]),
  ],
)
def test_which_ids_are_real(options, want):
  ids = jnp.asarray([[1, 2, 0, 2, 0], [2, 0, 1, 8, 8]])
  stem = Tokens(width=4, vocab=9, length=5, **options)
  _, mask = stem.apply(filled(stem, ids), ids)
  np.testing.assert_array_equal(mask, np.asarray(want, bool))


def test_errors_say_what_was_got():
  patches = Patches(width=16, size=(8, 8, 3), patch=(4, 4))
  tokens = Tokens(width=16, vocab=9, length=4)
  for stem, x, mask, error, match in [
    (patches, jnp.zeros((1, 8, 6, 3)), None, ValueError, r"8 x 6 .*\(.*6 % 4 = 2\)"),
    (patches, jnp.zeros((1, 8, 8, 1)), None, ValueError, "1 channels, expected 3"),
    (patches, jnp.zeros((1, 8, 8, 3), jnp.uint8), None, TypeError, "uint8"),
    (
      patches.clone(log_mel=()),
      jnp.zeros((1, 99), jnp.int16),
      None,
      TypeError,
      "int16",
    ),
    (tokens, jnp.zeros((1, 5), int), None, ValueError, "5 ids, expected at most .* 4"),
    (tokens, jnp.zeros((1, 4)), None, TypeError, "float32"),
    (tokens, jnp.zeros((1, 4), int), jnp.ones((1, 3), bool), ValueError, "text_mask"),
  ]:
    with pytest.raises(error, match=match):
      jax.eval_shape(lambda: stem.init(KEY, x, mask))  # noqa: B023


def test_dtype():
  for stem, x in [
    (Patches(width=8, size=(8, 8, 3), patch=(4, 4), dtype=jnp.bfloat16), image(8, 8)),
    (Tokens(width=8, vocab=4, length=2, dtype=jnp.bfloat16), jnp.ones((1, 2), int)),
  ]:
    (y, _), variables = jax.eval_shape(lambda: stem.init_with_output(KEY, x))  # noqa: B023
    assert y.dtype == jnp.bfloat16
    assert all(a.dtype == jnp.float32 for a in jax.tree.leaves(variables))


@pytest.mark.parametrize("position", ["learned", "sincos"])
def test_patches_are_left_out_in_training_only(
  position,
):
  x = image(8, 8)
  stem = Patches(16, (8, 8, 3), (2, 2), position=position, drop=0.75)
  params = filled(stem, x)
  whole, _ = stem.apply(params, x)
  rngs = {"dropout": jax.random.key(3)}
  some, _ = stem.apply(params, x, train=True, rngs=rngs)
  assert whole.shape[1] == 16 and some.shape[1] == 4
  distance = jnp.abs(whole[:, None] - some[:, :, None]).max(axis=-1)  # [b, 4, 16]
  found = jnp.argmin(distance, axis=-1)
  assert float(distance.min(axis=-1).max()) < 1e-5
  assert (jnp.diff(found, axis=1) > 0).all(), "in order, none twice"
  assert (found[0] != found[1]).any(), "each example draws its own"
  other, _ = stem.apply(params, x, train=True, rngs={"dropout": jax.random.key(4)})
  assert (some != other).any()


def test_a_real_patch_is_never_left_out_for_padding():
  frames = jnp.ones((64, 40, 8))
  mask = jnp.arange(40)[None] < jnp.full((64, 1), 2)  # the first of 20 patches is real
  stem = Patches(16, (40, 8, 1), (2, 8), drop=0.5)
  params = stem.init(KEY, frames, mask)
  rngs = {"dropout": jax.random.key(3)}
  _, kept = stem.apply(params, frames, mask, train=True, rngs=rngs)
  assert kept.shape == (64, 10) and (kept.sum(axis=1) == 1).all()
