"""Guided NT-Xent against a loop over all views; every mode on several devices."""

import dataclasses

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from model.losses import guided_ntxent, ntxent
from model.types import BATCH_AXES, MESH_AXES
from tests.model.losses import loops

B = 8
VALID = np.arange(B) != 1
T = 0.2
RATIOS = dict(add_pos=None, drop_fn=0.2, drop_en=0.3, drop_fp=0.3)
DROPPED = dict(drop_fn=2, drop_en=3, drop_fp=2)  # of 12 negatives, or of 7 rows
MODES = sorted(RATIOS)


def make():
  """Views, and the guide's of another width."""
  guide = loops.make(7, b=B, d=3)
  return loops.make(b=B) | {f"{m}@teacher": g for m, g in guide.items()}


def loss_of(mode, **options):
  options = dict(mode=mode, ratio=RATIOS[mode], temperature=T) | options
  return guided_ntxent.Loss(**options)


def loop(z, mode, found=None):
  """Over the 2b views in one list. `found` collects (anchor, its second positive)."""
  rows = loops.rows_of(VALID, B)
  n = len(rows)
  views, seen = (
    [z[f"image{at}"][i] for i in rows] + [z[f"text{at}"][i] for i in rows]
    for at in ("", "@teacher")
  )
  total, sure = [], []
  for i in range(2 * n):
    partner = (i + n) % (2 * n)
    s = [views[i] @ w / T for w in views]
    others = sorted(
      (j for j in range(2 * n) if j not in (i, partner)),
      key=lambda j: -(seen[i] @ seen[j]),
    )
    kept = {
      "drop_fn": others[DROPPED["drop_fn"] :],
      "drop_en": others[: -DROPPED["drop_en"]],
    }.get(mode, others)
    value = loops.lse([s[j] for j in (partner, *kept)]) - s[partner]
    if mode == "add_pos":
      value += (s[partner] - s[others[0]]) / 2
      if found is not None:
        found.append((rows[i % n], rows[others[0] % n]))
    total.append(value)
    sure.append(seen[i] @ seen[partner])
  if mode != "drop_fp":
    return np.mean(total)
  kept = np.argsort(sure[:n])[DROPPED["drop_fp"] :]
  return np.mean([total[i] for i in (*kept, *(kept + n))])


@pytest.mark.parametrize("mode", MODES)
def test_value_and_gradient_are_the_loop(mode):
  z = make()
  own = {m: z[m] for m in ("image", "text")}
  guide = {m: x for m, x in z.items() if m not in own}
  exact = {m: x.astype(np.float64) for m, x in guide.items()}

  @dataclasses.dataclass(frozen=True)
  class Guided:  # the guide is no variable of the loop: its slope is 0, or undefined
    loss: guided_ntxent.Loss

    def init(self, key):
      return self.loss.init(key)

    def __call__(self, params, z, batch):
      return self.loss(params, {**z, **guide}, batch)

  loops.check(
    Guided(loss_of(mode)), lambda z, s: loop(z | exact, mode), own, {"valid": VALID}
  )


@pytest.mark.parametrize(
  ("mode", "strategy"), [("drop_fn", "ring"), ("drop_en", "tiled"), ("drop_fp", "auto")]
)
def test_eight_devices_are_the_loop(mode, strategy):
  z = make()
  loss = loss_of(mode, strategy=strategy, tile=3)
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  mesh = jax.make_mesh((2, 2, 2, 1), MESH_AXES, axis_types=auto)
  with jax.set_mesh(mesh):
    split = jax.NamedSharding(mesh, P(BATCH_AXES))
    z_split, batch = jax.device_put((z, {"valid": VALID}), split)
    value, _ = jax.jit(lambda z, batch: loss({}, z, batch))(z_split, batch)
  exact = {m: x.astype(np.float64) for m, x in z.items()}
  np.testing.assert_allclose(value, loop(exact, mode), rtol=3e-6)


def test_features_of_the_batch_may_guide_and_errors_are_counted():
  z, label = make(), np.asarray([0, 0, 1, 1, 0, 1, 0, 1], np.int32)
  same = np.random.default_rng(3).normal(size=(B, 3)).astype(np.float32)
  loss = loss_of("add_pos", guide="features", label="label_group")
  assert loss.reads == ("features", "label_group") and not loss.teachers
  batch = {"valid": VALID, "features": same, "label_group": label}
  value, metrics = loss({}, z, batch)
  unit = same / np.linalg.norm(same, axis=1, keepdims=True)
  found = []
  # To this guide both views of a row are one: the one on the anchor's side is taken.
  guide = {
    f"{view}@teacher": np.concatenate([unit, np.full((B, 1), side)], axis=1)
    for view, side in (("image", 1e-6), ("text", -1e-6))
  }
  exact = {m: x.astype(np.float64) for m, x in (z | guide).items()}
  np.testing.assert_allclose(value, loop(exact, "add_pos", found), rtol=1e-5)
  wrong = np.mean([label[i] != label[j] for i, j in found])
  for view in ("image", "text"):
    got = metrics[f"guided_ntxent/labelling_error_{view}"]
    np.testing.assert_allclose(got, wrong, rtol=1e-6)


def test_labels_of_millions_are_told_apart():
  z, label = make(), np.asarray([0, 0, 1, 1, 0, 1, 0, 1], np.int32)
  loss = loss_of("add_pos", label="label_id")
  f = jax.jit(lambda label: loss({}, z, {"valid": VALID, "label_id": label})[1])
  key = "guided_ntxent/labelling_error_image"
  want = f(label)[key]
  assert 0 < want < 1
  for first in (5000, 2047, 4_000_000):
    assert f(first + label)[key] == want
  known = f(np.where(label == 1, np.int32(-1), label))[key]  # no partner of its own
  assert 0 < known < 1


@pytest.mark.parametrize(
  "options",
  [dict(mode="none"), *(dict(mode=m, ratio=0.0) for m in MODES if m != "add_pos")],
)
def test_without_anything_dropped_it_is_ntxent(options):
  z, batch = make(), {"valid": VALID}
  loss = guided_ntxent.Loss(temperature=T, **options)
  want, _ = ntxent.Loss(temperature=T)({}, z, batch)
  np.testing.assert_allclose(loss({}, z, batch)[0], want, rtol=1e-5)


@pytest.mark.parametrize("mode", ["add_pos", "drop_fn", "drop_fp"])
def test_one_row_or_none_has_no_loss(mode):
  loss = loss_of(mode)
  f = jax.jit(
    jax.value_and_grad(lambda z, valid: loss({}, z, {"valid": valid}), has_aux=True)
  )
  for rows in (0, 1):
    (value, metrics), dz = f(make(), np.arange(B) < rows)
    assert value == pytest.approx(0, abs=1e-6)
    assert all(np.abs(g).max() < 1e-6 for g in dz.values())
    assert all(np.isfinite(x) for x in metrics.values())


def test_errors():
  with pytest.raises(ValueError, match="mode = 'drop' must be one of"):
    guided_ntxent.Loss(mode="drop")
  with pytest.raises(ValueError, match=r"ratio = 1.0 must be in \[0, 1\)"):
    guided_ntxent.Loss(ratio=1.0)
  with pytest.raises(ValueError, match=r"temperature = 0.01 must be at least 0.025"):
    guided_ntxent.Loss(temperature=0.01)
