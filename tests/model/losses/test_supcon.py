"""SupCon against a double loop in f64: both forms, ids, and two views of one thing."""

import numpy as np
import pytest

from model.losses import infonce, supcon
from tests.model.losses import loops

VALID = np.arange(loops.B) % 4 != 1
IDS = np.asarray([3, 1, 3, 7, 7, 0, 3, 1, 7], np.int32)  # the only other 1 is masked


def one_way(x, y, scale, form="out", ids=IDS, intra=False):
  rows = loops.rows_of(VALID)
  total = []
  for i in rows:
    pool = [(scale * (x[i] @ y[j]), ids[j] == ids[i]) for j in rows]
    if intra:
      pool += [(scale * (x[i] @ x[j]), ids[j] == ids[i]) for j in rows if j != i]
    near = [s for s, same in pool if same]
    target = np.mean(near) if form == "out" else loops.lse(near) - np.log(len(near))
    total.append(loops.lse([s for s, _ in pool]) - target)
  return np.mean(total)


@pytest.mark.parametrize(
  ("form", "intra"), [("out", False), ("in", False), ("out", True)]
)
def test_value_and_gradient_are_the_double_loop(form, intra):
  loop = loops.both_ways(lambda x, y, scale: one_way(x, y, scale, form, intra=intra))
  loss = supcon.Loss(temperature=0.2, form=form, intra=intra)
  batch = {"valid": VALID, "id": IDS}
  _, metrics = loops.check(loss, loop, loops.make(), batch, 5.0)
  # Of the valid rows 3, 3, 7, 7, 0, 3, 1 (and 7 at the end): |P| = 3, 3, 3, 3, 1, 3, 1.
  kept = IDS[VALID]
  want = np.mean([np.sum(kept == k) for k in kept])
  np.testing.assert_allclose(metrics["supcon/positives_image_text"], want, rtol=1e-6)


@pytest.mark.parametrize("form", ["out", "in"])
def test_ids_that_are_all_different_make_it_infonce(form):
  z, batch = loops.make(1), {"valid": VALID, "id": np.arange(loops.B, dtype=np.int32)}
  (value, _), (_, dz) = loops.evaluate(supcon.Loss(form=form), z, batch)
  (want, _), (_, want_dz) = loops.evaluate(infonce.Loss(temperature=0.1), z, batch)
  np.testing.assert_allclose(value, want, rtol=1e-5)
  for m in z:
    np.testing.assert_allclose(dz[m], want_dz[m], rtol=1e-5, atol=1e-6)


def test_out_bounds_in_from_above():
  z, batch = loops.make(2), {"id": IDS}
  out, within = (
    loops.evaluate(supcon.Loss(form=form), z, batch)[0][0] for form in ("out", "in")
  )
  assert out > within  # Jensen


@pytest.mark.parametrize("form", ["out", "in"])
def test_one_id_for_all_and_positives_of_probability_zero(form):
  z = loops.make(3)
  same = {"id": np.zeros(loops.B, np.int32)}
  (value, _), (_, dz) = loops.evaluate(
    supcon.Loss(form=form, temperature=0.01), z, same
  )
  assert np.isfinite(value) and all(np.isfinite(x).all() for x in dz.values())
  if form == "in":  # the positives are all there is: lse - (lse - log b)
    np.testing.assert_allclose(value, np.log(loops.B), rtol=1e-5)
  # exp(-200) is 0 in f32, its logarithm must not be.
  opposed = z | {"text": -z["image"]}
  apart = {"id": np.arange(loops.B, dtype=np.int32)}
  loss = supcon.Loss(form=form, temperature=0.01)
  (value, _), _ = loops.evaluate(loss, opposed, apart)
  assert np.isfinite(value) and value > 100


@pytest.mark.parametrize("options", [{}, {"form": "in"}, {"intra": True}], ids=str)
@pytest.mark.parametrize("rows", [0, 1])
def test_one_row_or_none_has_no_loss(rows, options):
  batch = {"valid": np.arange(loops.B) < rows, "id": IDS}
  loss = supcon.Loss(**options, learned=False)
  (value, metrics), (_, dz) = loops.evaluate(loss, loops.make(), batch)
  assert value == pytest.approx(0, abs=1e-6)
  assert all(np.abs(g).max() < 1e-6 for g in dz.values())
  assert all(np.isfinite(x) for x in metrics.values())


def test_errors():
  with pytest.raises(ValueError, match=r"form = 'both' must be 'out' or 'in'"):
    supcon.Loss(form="both")
  with pytest.raises(ValueError, match="intra = True needs form = 'out'"):
    supcon.Loss(form="in", intra=True)
  with pytest.raises(ValueError, match=r'by batch\["id"\], i32\[b\]'):
    supcon.Loss(learned=False)({}, loops.make(), {})
