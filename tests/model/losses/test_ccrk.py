"""1-to-K against a double loop in f64; missing texts; and CLIP, with one language."""

import numpy as np
import pytest

from model.losses import ccrk, infonce
from tests.model.losses import loops

MANY = ("text", "german", "french")
VALID = np.arange(loops.B) % 4 != 1
HAS = {
  "german_valid": np.asarray([1, 1, 0, 1, 0, 1, 1, 1, 0], bool),
  "text_valid": np.asarray([1, 1, 1, 1, 0, 1, 0, 1, 1], bool),
  "french_valid": np.asarray([1, 1, 1, 0, 0, 1, 1, 0, 1], bool),
}


def loop_of(has):
  def loop(z, scale):
    rows = loops.rows_of(VALID)
    texts = [(i, m) for i in rows for m in MANY if has.get(f"{m}_valid", VALID)[i]]
    v, forth, back = z["image"], [], []
    for i in rows:
      every = [scale * (v[i] @ z[m][j]) for j, m in texts]
      own = [scale * (v[i] @ z[m][j]) for j, m in texts if j == i]
      if own:
        forth.append(loops.lse(every) - np.mean(own))
    for i, m in texts:
      s = {j: scale * (v[j] @ z[m][i]) for j in rows}
      back.append(loops.lse(list(s.values())) - s[i])
    return (np.mean(forth) + np.mean(back)) / 2

  return loop


@pytest.mark.parametrize("has", [{}, HAS], ids=["all", "some"])
def test_value_and_gradient_are_the_double_loop(has):
  loss = ccrk.Loss(many=MANY, temperature=0.2)
  z = loops.make(modalities=("image", *MANY))
  _, metrics = loops.check(loss, loop_of(has), z, {"valid": VALID, **has}, 5.0)
  assert {"ccrk/image_to_texts", "ccrk/german_to_image"} <= metrics.keys()


def test_one_language_is_infonce():
  z, batch = loops.make(), {"valid": VALID}
  (value, _), (grads, dz) = loops.evaluate(ccrk.Loss(many=("text",)), z, batch)
  (want, _), (want_grads, want_dz) = loops.evaluate(infonce.Loss(), z, batch)
  np.testing.assert_allclose(value, want, rtol=1e-6)
  np.testing.assert_allclose(grads["log_scale"], want_grads["log_scale"], rtol=1e-5)
  for m in z:
    np.testing.assert_allclose(dz[m], want_dz[m], rtol=1e-5, atol=1e-6)


def test_texts_of_all_languages_are_of_one_size_in_each_direction():
  """The released code divides text-to-image by K once too often."""
  z = loops.make()
  many = z | {m: z["text"] for m in ("german", "french")}
  (_, one), _ = loops.evaluate(ccrk.Loss(many=("text",)), z, {})
  (_, three), _ = loops.evaluate(ccrk.Loss(many=MANY), many, {})
  for m in MANY:
    np.testing.assert_allclose(
      three[f"ccrk/{m}_to_image"], one["ccrk/text_to_image"], rtol=1e-6
    )
  # Copies compete: log 3 more, and nothing else.
  np.testing.assert_allclose(
    three["ccrk/image_to_texts"], one["ccrk/image_to_texts"] + np.log(3), rtol=1e-6
  )


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows(rows):
  z = loops.make(modalities=("image", *MANY))
  batch = {"valid": np.arange(loops.B) < rows}
  (value, metrics), (_, dz) = loops.evaluate(ccrk.Loss(many=MANY), z, batch)
  assert np.isfinite(value) and (rows or value == 0)
  assert all(np.isfinite(x) for x in metrics.values())
  assert all(np.isfinite(x).all() for x in dz.values())


def test_names_must_differ():
  with pytest.raises(ValueError, match="must be names other than 'image'"):
    ccrk.Loss(many=("image", "text"))
  with pytest.raises(ValueError, match=r"many = \(\) must be names"):
    ccrk.Loss(many=())
