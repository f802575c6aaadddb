"""GCL against a double loop in f64: weights, fields, and rows of the same query."""

import numpy as np
import pytest

from model.losses import gcl, infonce
from tests.model.losses import loops

VALID = np.arange(loops.B) % 4 != 1
GRADE = np.asarray([1, 100, 50, 3, 77, 100, 20, 9, 64], np.float32)
QUERY = np.asarray([0, 0, 0, 1, 1, 2, 3, 3, 4], np.int32)
WEIGHT = {
  "constant": lambda s: 1.0,
  "linear": lambda s: s / 100,
  "inverse": lambda s: 1 / (101 - s),
  "log": lambda s: np.log1p(s) / np.log(101),
}


def one_way(x, y, scale, w, size=None, query=None):
  rows, total = loops.rows_of(VALID), 0.0
  query = np.arange(len(x)) if query is None else query
  for i in rows:
    s = [scale * (x[i] @ y[j]) for j in rows if j == i or query[j] != query[i]]
    total += w[i] * (loops.lse(s) - scale * (x[i] @ y[i]))
  return total / (size or sum(w[i] for i in rows))


@pytest.mark.parametrize("kind", gcl.KINDS)
def test_value_and_gradient_are_the_double_loop(kind):
  w = [WEIGHT[kind](s) for s in GRADE.astype(np.float64)]
  loop = loops.both_ways(lambda x, y, scale: one_way(x, y, scale, w))
  loss = gcl.Loss(weight=kind, temperature=0.2)
  loops.check(loss, loop, loops.make(), {"valid": VALID, "grade": GRADE}, 5.0)


def test_rows_and_queries():
  w = list(GRADE.astype(np.float64) / 100)
  loop = loops.both_ways(
    lambda x, y, scale: one_way(x, y, scale, w, VALID.sum(), QUERY)
  )
  loss = gcl.Loss(temperature=0.2, normalise="rows", query="who", grade="stars")
  assert loss.reads == ("stars", "who")
  batch = {"valid": VALID, "stars": GRADE, "who": QUERY}
  loops.check(loss, loop, loops.make(), batch, 5.0)


def test_equal_weights_are_infonce():
  z, grade = loops.make(), np.full(loops.B, 40, np.int32)
  batch = {"valid": VALID, "grade": grade}
  for kind in gcl.KINDS:
    (value, _), (_, dz) = loops.evaluate(gcl.Loss(weight=kind), z, batch)
    (want, _), (_, want_dz) = loops.evaluate(infonce.Loss(), z, batch)
    np.testing.assert_allclose(value, want, rtol=1e-6)
    for m in z:
      np.testing.assert_allclose(dz[m], want_dz[m], rtol=1e-5, atol=1e-6)


def test_a_side_of_several_fields():
  modalities = ("text", "image", "title")
  z = loops.make(modalities=modalities)
  fields = (("document", (("title", 0.3), ("image", 0.7))),)
  loss = gcl.Loss(pairs=(("text", "document"),), fields=fields, temperature=0.2)
  assert loss.modalities == ("text", "title", "image")
  w = list(GRADE.astype(np.float64) / 100)

  def loop(z, scale):
    document = 0.3 * z["title"] + 0.7 * z["image"]
    document = document / np.linalg.norm(document, axis=-1, keepdims=True)
    both = loops.both_ways(lambda x, y: one_way(x, y, scale, w))
    return both({"image": z["text"], "text": document})

  loops.check(loss, loop, z, {"valid": VALID, "grade": GRADE}, 5.0)


def test_a_row_that_lacks_a_field_is_left_out():
  z = loops.make(modalities=("text", "image", "title"))
  fields = (("document", (("title", 0.3), ("image", 0.7))),)
  loss = gcl.Loss(pairs=(("text", "document"),), fields=fields)
  (want, _), (_, want_dz) = loops.evaluate(loss, z, {"grade": GRADE, "valid": VALID})
  for field, _ in fields[0][1]:
    batch = {"grade": GRADE, f"{field}_valid": VALID}
    (value, _), (_, dz) = loops.evaluate(loss, z, batch)
    assert value == want
    for m in z:
      np.testing.assert_array_equal(dz[m], want_dz[m])


@pytest.mark.parametrize("normalise", ["weights", "rows"])
def test_without_weight_there_is_no_loss(normalise):
  z, loss = loops.make(), gcl.Loss(normalise=normalise)
  for valid, grade in ((VALID, 0 * GRADE), (VALID & False, GRADE), (VALID, -GRADE)):
    batch = {"valid": valid, "grade": grade}
    (value, metrics), (_, dz) = loops.evaluate(loss, z, batch)
    assert value == 0 and all(np.all(x == 0) for x in dz.values())
    assert all(np.isfinite(x) for x in metrics.values())


def test_one_query_for_all_has_no_negatives():
  batch = {"grade": GRADE, "who": np.zeros(loops.B, np.int32)}
  (value, _), (_, dz) = loops.evaluate(gcl.Loss(query="who"), loops.make(), batch)
  assert value == 0 and all(np.all(x == 0) for x in dz.values())


def test_errors():
  with pytest.raises(ValueError, match=r"reads batch\['grade'\]; got \['id'\]"):
    gcl.Loss(learned=False)({}, loops.make(), {"id": QUERY})
  with pytest.raises(ValueError, match=r"weight = 'square' must be one of"):
    gcl.Loss(weight="square")
  with pytest.raises(ValueError, match=r"top = 0 must be above 0"):
    gcl.Loss(top=0)
