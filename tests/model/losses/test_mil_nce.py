"""MIL-NCE against a double loop in f64, and what a bag is for."""

import jax
import numpy as np
import pytest

from model.losses import infonce, mil_nce
from tests import slopes

B, D, T = 7, 4, 0.3
VALID = np.arange(B) != 2
BAGS = np.array([5, 5, 5, 9, 9, -3, 5], np.int32)


def loop(z, bags, valid, joint, t=T):
  rows, total = np.flatnonzero(valid), 0.0
  for a, b in ((z["image"], z["text"]), (z["text"], z["image"])):
    for i in rows:
      own = [j for j in rows if bags[j] == bags[i]]
      others = [j for j in rows if bags[j] != bags[i]]
      p = sum(np.exp(a[i] @ b[j] / t) for j in own)
      n = sum(np.exp(a[i] @ b[j] / t) for j in others)
      if joint:
        n += sum(np.exp(a[k] @ b[j] / t) for j in own for k in others)
      total -= np.log(p / (p + n)) / len(rows)
  return total / 2


def run(loss, z, batch):
  f = jax.jit(jax.value_and_grad(lambda z, batch: loss({}, z, batch), has_aux=True))
  return jax.device_get(f(z, batch))


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(
  "bags", [BAGS, np.arange(B, dtype=np.int32)], ids=["bags", "one"]
)
def test_value_and_slope_are_the_double_loop(bags, joint):
  loss = mil_nce.Loss(temperature=T, learned=False, joint=joint)
  batch = {"valid": VALID, "id": bags}
  slopes.assert_is(
    loss, lambda z: loop(z, bags, VALID, joint), slopes.unit(B, D), batch
  )


def test_the_temperature_has_the_loops_slope():
  z, batch = slopes.unit(B, D), {"valid": VALID, "id": BAGS}
  loss = mil_nce.Loss(temperature=T)
  params = loss.init(jax.random.key(0))
  grad = jax.jit(jax.grad(lambda p: loss(p, z, batch)[0]))(params)
  exact, h = {m: x.astype(np.float64) for m, x in z.items()}, 1e-5
  ends = [loop(exact, BAGS, VALID, True, T * np.exp(-s)) for s in (h, -h)]
  want = (ends[0] - ends[1]) / (2 * h)
  np.testing.assert_allclose(grad["log_scale"], want, rtol=1e-5)


def test_bags_of_one_are_infonce():
  z = slopes.unit(B, D)
  (got, _), _ = run(mil_nce.Loss(learned=False, joint=False), z, {})
  (want, _), _ = run(infonce.Loss(learned=False), z, {})
  np.testing.assert_allclose(got, want, rtol=3e-6)


@pytest.mark.parametrize("joint", [False, True])
def test_order_within_a_bag_is_of_no_matter(joint):
  z = slopes.unit(B, D)
  swapped = {**z, "text": z["text"][[6, 0, 1, 4, 3, 5, 2]]}
  loss = mil_nce.Loss(learned=False, joint=joint)
  one, two = (run(loss, x, {"id": BAGS})[0][0] for x in (z, swapped))
  np.testing.assert_allclose(one, two, rtol=1e-6)


def test_one_member_that_matches_will_do():
  """A supervised loss would ask both sentences to match; this asks for one."""
  eye = np.eye(4, dtype=np.float32)
  z = {"image": eye[[0, 0, 1, 1]], "text": eye[[0, 2, 1, 3]]}
  ids = np.array([0, 0, 1, 1], np.int32)
  loss = mil_nce.Loss(temperature=0.05, learned=False, joint=False)
  (_, metrics), _ = run(loss, z, {"id": ids})
  assert metrics["mil_nce/image_to_text"] < 1e-6
  (_, alone), _ = run(loss, z, {})
  assert alone["mil_nce/image_to_text"] > 1


def test_a_small_share_of_the_bag_is_exact():
  """-log(1 - N / (P + N)) of the f32 sums would be inf here: P / N is exp(-40)."""
  eye = np.eye(2, dtype=np.float32)
  z = {"image": eye, "text": eye[::-1]}
  loss = mil_nce.Loss(temperature=0.025, learned=False, joint=False)
  (value, _), _ = run(loss, z, {"id": np.arange(2, dtype=np.int32)})
  np.testing.assert_allclose(value, 40, rtol=1e-6)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(
  ("valid", "bags"),
  [
    (np.zeros(B, bool), BAGS),
    (np.arange(B) == 1, BAGS),
    (np.ones(B, bool), np.zeros(B, np.int32)),
  ],
  ids=["none", "one", "one bag"],
)
def test_without_negatives_it_is_zero(valid, bags, joint):
  loss = mil_nce.Loss(learned=False, joint=joint)
  (value, _), grad = run(loss, slopes.unit(B, D), {"valid": valid, "id": bags})
  assert value == 0 and all(np.all(g == 0) for g in grad.values())


def test_temperature_must_be_above_its_bound():
  with pytest.raises(ValueError, match="at least 1 / max_scale"):
    mil_nce.Loss(temperature=0.001)
