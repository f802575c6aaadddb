"""M3Co against a double loop over a target matrix in f64; whole rows and errors."""

import numpy as np
import pytest

from model.losses import infonce, m3co
from tests.model.losses import loops

NAMES = ("image_mixed", "image", "text_mixed", "text")
VALID = np.arange(loops.B) % 4 != 1
# Row 0 is mixed with itself, 3 not at all, 4 with a row that is not valid.
PARTNER = np.array([0, 6, 7, -1, 5, 8, 2, 0, 3], np.int32)
SHARE = np.array([0.4, 0.1, 0.7, 0.2, 0.3, 0.9, 0.6, 0.5, 0.15], np.float32)


def make():
  z = loops.make(modalities=NAMES)
  batch = {"valid": VALID}
  for m, shift in (("image_mixed", 0), ("text_mixed", 3)):
    batch[f"{m}_partner"] = np.roll(PARTNER, shift)
    batch[f"{m}_share"] = np.roll(SHARE, shift)
  return z, batch


def one_pair(x, y, partner, share, scale):
  """Minus the sums of P log softmax, along rows and along columns."""
  rows = loops.rows_of(VALID)
  p = np.zeros((loops.B, loops.B))
  for i in rows:
    k = partner[i] if partner[i] >= 0 and VALID[partner[i]] else i
    p[i, i] += share[i] if k != i else 1.0
    p[i, k] += 1 - share[i] if k != i else 0.0
  s = scale * x @ y.T
  total = 0.0
  for i in rows:
    for j in rows:
      along = loops.lse([s[i, k] for k in rows]) + loops.lse([s[k, j] for k in rows])
      total += p[i, j] * (along - 2 * s[i, j])
  return total / (2 * len(rows))


def test_value_and_gradient_are_the_double_loop():
  z, batch = make()

  def loop(z, scale):
    total = 0.0
    for a, b in (("image_mixed", "text"), ("text_mixed", "image")):
      mixed = batch[f"{a}_partner"], np.float64(batch[f"{a}_share"])
      total += one_pair(z[a], z[b], *mixed, scale) / 2
    return total

  loss = m3co.Loss(temperature=0.2, learned=True)
  _, metrics = loops.check(loss, loop, z, batch, 5.0)
  share = np.where(np.isin(np.arange(loops.B), [0, 3, 4]), 1, SHARE)[VALID].mean()
  np.testing.assert_allclose(metrics["m3co/share_image_mixed"], share, rtol=1e-6)


def test_whole_rows_are_infonce():
  z, _ = make()
  batch = {"valid": VALID, "image_partner": np.full(loops.B, -1, np.int32)}
  batch["image_share"] = SHARE
  pairs = (("image", "text"),)
  got, slope = loops.evaluate(m3co.Loss(pairs=pairs), z, batch)
  loss = infonce.Loss(temperature=0.1, learned=False)
  want, want_slope = loops.evaluate(loss, z, batch)
  np.testing.assert_allclose(got[0], want[0], rtol=1e-6)
  for m in z:
    np.testing.assert_allclose(slope[1][m], want_slope[1][m], atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
def test_one_row_or_none_has_no_loss(rows):
  z, batch = make()
  batch["valid"] = np.arange(loops.B) < rows
  (value, _), (_, dz) = loops.evaluate(m3co.Loss(), z, batch)
  assert abs(value) < 1e-6
  assert all(np.abs(x).max() < 1e-5 for x in dz.values())


def test_a_batch_that_was_not_mixed_says_what_to_set():
  z, _ = make()
  with pytest.raises(ValueError, match=r"'image_mixed_partner'\]: what was mixed into"):
    m3co.Loss()({}, z, {})
