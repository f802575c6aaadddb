"""Other image sizes and vocabularies: what is kept, and what is refused."""

import jax
import numpy as np
import pytest

from model.encoders import towers
from model.interop.adapt import adapted
from model.layers import position
from tests.model.interop.models import clip, filled, same


def test_positions_are_interpolated_and_new_ids_start_as_the_mean():
  config = clip()
  params = filled(config)
  new, got, said = adapted(config, params, size=16, vocab=11)
  assert said == ["images of (8, 8, 3) -> (16, 16, 3)", "ids 9 -> 11"]
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
  [(dict(size=10), r"10 % 4 = 2"), (dict(vocab=8), r"8 ids, .*vocab = 9: expected mo")],
)
def test_refusals(flags, match):
  config = clip()
  with pytest.raises(ValueError, match=match):
    adapted(config, filled(config), **flags)
