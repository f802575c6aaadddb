"""Distillation of similarities against a double loop: across and within, any widths."""

import numpy as np
import pytest

from model.losses import distill
from tests.model.losses import loops

VALID = np.arange(loops.B) % 4 != 1
T, SOFT = 0.2, 0.15
ROUNDING = 4 * 2.0**-20  # four last digits of scores of up to 10, whose sum is to be 0


def one_way(x, y, s, t, own=False):
  rows = loops.rows_of(VALID)
  total = []
  for i in rows:
    others = [j for j in rows if not (own and j == i)]
    q, p = (
      np.asarray([a[i] @ b[j] / h for j in others])
      for a, b, h in ((x, y, T), (s, t, SOFT))
    )
    log_q, log_p = q - loops.lse(q), p - loops.lse(p)
    total.append(np.sum(np.exp(log_p) * (log_p - log_q)))
  return np.mean(total)


def teacher():
  """Of another width than the student."""
  return {f"{m}@teacher": x for m, x in loops.make(5, d=7).items()}


class Taught:
  """The loss of the student alone: the teacher is no variable of the loop."""

  def __init__(self, loss, given):
    self.loss, self.given, self.init = loss, given, loss.init

  def __call__(self, params, z, batch):
    return self.loss(params, {**z, **self.given}, batch)


def test_value_and_gradient_are_the_double_loop():
  given = teacher()
  s, t = (x.astype(np.float64) for x in given.values())
  loss = distill.Loss(temperature=T, teacher_temperature=SOFT)
  assert loss.teachers == ("image@teacher", "text@teacher")

  def loop(z, scale):
    del scale
    x, y = z["image"], z["text"]
    return (one_way(x, y, s, t) + one_way(y, x, t, s)) / 2

  _, metrics = loops.check(Taught(loss, given), loop, loops.make(), {"valid": VALID})
  assert 1 < metrics["distill/effective_targets_image_to_text"] < VALID.sum()


def test_similarities_within_a_modality_follow_those_within_another():
  given = teacher()
  s = given["text@teacher"].astype(np.float64)
  loss = distill.Loss(
    pairs=(("image", "image"),),
    targets=(("text@teacher", "text@teacher"),),
    temperature=T,
    teacher_temperature=SOFT,
  )
  assert loss.teachers == ("text@teacher",)
  z = {"image": loops.make()["image"]}

  def loop(z, scale):
    del scale
    return one_way(z["image"], z["image"], s, s, own=True)

  _, metrics = loops.check(Taught(loss, given), loop, z, {"valid": VALID})
  assert set(metrics) == {
    "distill/image_to_image",
    "distill/effective_targets_image_to_image",
  }


def test_a_student_like_its_teacher_has_nothing_to_learn():
  z = loops.make()
  z |= {f"{m}@teacher": x for m, x in z.items()}
  (value, _), (_, dz) = loops.evaluate(distill.Loss(), z, {"valid": VALID})
  assert abs(value) < ROUNDING
  assert all(np.abs(g).max() < ROUNDING / 0.1 for g in dz.values())


@pytest.mark.parametrize("own", [False, True])
def test_one_row_or_none_has_no_loss(own):
  z = loops.make() | teacher()
  pair = (("image", "image"),) if own else (("image", "text"),)
  # A teacher so cold that exp of a row's similarity to itself would overflow.
  cold = 0.005 if own else 0.1
  loss = distill.Loss(pairs=pair, teacher_temperature=cold)
  for rows in (0, 1):
    batch = {"valid": np.arange(loops.B) < rows}
    (value, metrics), (_, dz) = loops.evaluate(loss, z, batch)
    assert abs(value) < ROUNDING
    assert all(np.abs(g).max() < ROUNDING / loss.temperature for g in dz.values())
    assert all(np.isfinite(x) for x in metrics.values())


def test_errors():
  with pytest.raises(ValueError, match=r"targets = .* one pair for each"):
    distill.Loss(targets=2 * (("a", "b"),))
  with pytest.raises(ValueError, match="both or neither"):
    distill.Loss(pairs=(("image", "image"),), targets=(("text", "audio"),))
  with pytest.raises(ValueError, match="teacher_temperature = 0 must be above 0"):
    distill.Loss(teacher_temperature=0)
