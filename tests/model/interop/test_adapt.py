"""Other image sizes and vocabularies: what is kept, and what is refused."""

import jax
import numpy as np
import pytest

from model.encoders import towers
from model.interop.adapt import adapted, resampled_patches
from model.layers import position
from tests.model.interop.models import clip, filled, same


def test_positions_are_interpolated_and_new_ids_start_as_the_mean():
  config = clip()
  params = filled(config)
  new, got, said = adapted(config, params, size=16, vocab=11)
  assert said == [
    "images of (8, 8, 3) -> (16, 16, 3)",
    "positions of (2, 2) -> (4, 4)",
    "ids 9 -> 11",
  ]
  assert (config.model.modalities.image.size, new.model.modalities.image.size) == (
    (8, 8, 3),
    (16, 16, 3),
  )
  old, stem = (p["towers"]["stem_image"]["position"] for p in (params, got))
  want = position.resize_positions(old, (2, 2), (4, 4), "bicubic")
  np.testing.assert_array_equal(stem, want)
  was = params["towers"]["stem_text"]["embed"]["embedding"]
  table = got["towers"]["stem_text"]["embed"]["embedding"]
  np.testing.assert_array_equal(table[:9], was)
  np.testing.assert_allclose(table[9:], np.stack([was.mean(0)] * 2), rtol=1e-6)
  # The new config is of the new parameters, and old texts are encoded as before.
  text = {"text": np.asarray([[1, 0, 8, 3, 3]], np.int32)}
  run = lambda c, p: towers.build(c.model).apply({"params": p["towers"]}, text)  # noqa: E731
  a, b = (run(*pair)[0]["text"].pooled for pair in ((config, params), (new, got)))
  np.testing.assert_array_equal(a, b)
  image = {"image": np.ones((1, 16, 16, 3), np.float32)}
  shapes = jax.eval_shape(
    lambda p: towers.build(new.model).apply({"params": p}, image), got["towers"]
  )
  assert shapes[0]["image"].tokens.shape == (1, 17, 8)


def test_nothing_asked_changes_nothing():
  config = clip()
  params = filled(config)
  new, got, said = adapted(config, params, size=8, vocab=9)
  assert new == config and said == []
  same(got, params)


@pytest.mark.parametrize(
  ("flags", "match"),
  [
    (dict(size=10), r"10 % 4 = 2"),
    (dict(vocab=8), r"8 ids, .*vocab = 9: expected mo"),
    (dict(length=-3), r"length = -3, expected at least 1, or 0"),
    (dict(size=-8), r"size = -8, expected at least 1, or 0"),
    (dict(patch=-4), r"patch = -4, expected at least 1, or 0"),
  ],
)
def test_refusals(flags, match):
  config = clip()
  with pytest.raises(ValueError, match=match):
    adapted(config, filled(config), **flags)


def test_larger_patches_see_what_was_interpolated_as_before():
  config = clip()
  params = filled(config)
  new, got, said = adapted(config, params, patch=8, size=16)
  assert said == ["patches of (4, 4) -> (8, 8)", "images of (8, 8, 3) -> (16, 16, 3)"]
  assert new.model.modalities.image.patch == (8, 8)
  stem = got["towers"]["stem_image"]
  np.testing.assert_array_equal(
    stem["position"], params["towers"]["stem_image"]["position"]
  )
  patch = np.random.default_rng(0).standard_normal((5, 4, 4, 3)).astype(np.float32)
  larger = jax.image.resize(patch, (5, 8, 8, 3), "linear")
  old = patch.reshape(5, -1) @ params["towers"]["stem_image"]["embed"]["kernel"]
  np.testing.assert_allclose(
    np.asarray(larger).reshape(5, -1) @ stem["embed"]["kernel"], old, atol=1e-4
  )
  smaller = resampled_patches(stem["embed"]["kernel"], (8, 8), (4, 4))
  assert smaller.shape == (48, 8)
  # The same images in smaller patches: more of them, and more positions.
  _, _, said = adapted(config, params, patch=2)
  assert said == ["patches of (4, 4) -> (2, 2)", "positions of (2, 2) -> (4, 4)"]
  with pytest.raises(ValueError, match=r"8 pixels are not tiled .* \(8 % 3 = 2\)"):
    adapted(config, params, patch=3)


def test_texts_are_cut_or_stretched():
  config = clip()
  params = filled(config)
  old = params["towers"]["stem_text"]["position"]
  new, got, said = adapted(config, params, length=3)
  assert said == ["texts of 5 ids -> 3"] and new.model.modalities.text.length == 3
  np.testing.assert_array_equal(got["towers"]["stem_text"]["position"], old[:3])
  _, got, _ = adapted(config, params, length=10)
  table = got["towers"]["stem_text"]["position"]
  assert table.shape == (10, 4)
  np.testing.assert_allclose(table[[0, -1]], old[[0, -1]], atol=1e-6)
  del config.model.modalities["image"]
  with pytest.raises(ValueError, match=r"size cannot change: the model has no .*image"):
    adapted(config, params, size=16)
