"""The lab: its towers, three steps of training, the order of batches, tuning."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.claims.shared import digits, lab
from benchmarks.claims.shared.claim import Measured

PAIR = (("image_1", "image_2"),)


def images(rows=12):
  return np.random.default_rng(0).normal(size=(rows, 8, 8, 1)).astype(np.float32)


def mixed(seed=0, **changes):
  """Two views, weights shared, a weighted mix of losses."""
  own = dict(pairs=PAIR, temperature=0.2)
  return lab.recipe(
    **dict(
      seed=seed,
      towers=[
        dict(name="image_1", conv=(2,), hidden=(4,), head=(3,)),
        dict(name="image_2", conv=(2,), hidden=(4,), head=(3,), shares="image_1"),
      ],
      objective=dict(losses=(("infonce", 1.0, own), ("dcl", 0.5, own))),
      steps=3,
      batch=4,
      lr=1e-2,
      dim=8,
      prepare=dict(shift=1, noise=0.1),
    )
    | changes
  )


@pytest.fixture(scope="module")
def trained():
  return lab.train(mixed(), {"image": images()}, digits.views)


def test_a_mix_of_losses_is_trained_by_the_real_step(trained):
  history = trained.history
  assert all(v.shape == (3,) for v in history.values())
  total = history["infonce/loss"] + 0.5 * history["dcl/loss"]
  np.testing.assert_allclose(history["loss"], total, rtol=1e-5)
  assert {"grad_norm", "param_norm", "infonce/temperature"} <= history.keys()
  assert (np.diff(history["infonce/temperature"]) != 0).all()  # it is learned
  assert trained.params["objective"].keys() == {"infonce"}
  assert trained.params["towers"].keys() == {"image_1"}  # shared by both views


def test_seeds_and_rates_share_a_program_and_repeat_themselves(trained):
  again, other, faster = (
    lab.train(mixed(seed, lr=lr), {"image": images()}, digits.views)
    for seed, lr in ((0, 1e-2), (1, 1e-2), (0, 2e-2))
  )
  assert again.objective is other.objective is faster.objective is trained.objective
  assert faster.history["loss"][0] == trained.history["loss"][0]
  assert (faster.history["loss"][1:] != trained.history["loss"][1:]).all()
  np.testing.assert_array_equal(again.history["loss"], trained.history["loss"])
  assert (other.history["loss"] != trained.history["loss"]).all()


def test_what_is_embedded_has_unit_norm_and_features_are_before_the_head(trained):
  batch = {"image_1": images(5)}
  z = trained.embed(batch)
  assert z.keys() == {"image_1"} and z["image_1"].shape == (5, 8)
  np.testing.assert_allclose(np.linalg.norm(z["image_1"], axis=1), 1, rtol=1e-5)
  assert trained.features(batch)["image_1"].shape == (5, 4)


def test_tokens_are_compared_padding_is_not_seen_and_frozen_towers_stay():
  rng = np.random.default_rng(0)
  arrays = {m: rng.normal(size=(8, 3, 4)).astype(np.float32) for m in "ab"}
  arrays["b_mask"] = np.tile([True, True, False], (8, 1))
  recipe = lab.recipe(
    seed=0,
    towers=[dict(name="a", hidden=(4,)), dict(name="b", hidden=(), project=False)],
    objective=dict(losses=(("filip", 1.0, dict(pairs=(("a", "b"),))),)),
    steps=3,
    batch=4,
    lr=1e-2,
    dim=4,
    frozen=("towers/a",),
  )
  trained = lab.train(recipe, arrays)
  assert trained.params["towers"].keys() == {"a"}  # b is what it is given
  spoilt = arrays["b"].copy()
  spoilt[:, 2] = 1e6
  one, two = (
    trained.embed({"b": x, "b_mask": arrays["b_mask"]})["b"]
    for x in (arrays["b"], spoilt)
  )
  np.testing.assert_array_equal(one, two)
  first, last = (trained.history["param_norm"][i] for i in (0, -1))
  scale = trained.params["objective"]["filip"]["log_scale"]
  # All that moves is the temperature.
  rest = np.sqrt(last**2 - float(scale) ** 2)
  norm = np.sqrt(
    sum(np.sum(np.square(x)) for x in jax.tree.leaves(trained.params["towers"]))
  )
  np.testing.assert_allclose(rest, norm, rtol=1e-5)
  assert first != last


def test_every_row_comes_once_in_an_epoch():
  order = lab._order(0, 10, 4, 5)
  assert order.shape == (5, 4) and order.dtype == np.int32
  for epoch in (order[:2], order[2:4]):
    assert len(set(epoch.ravel())) == 8
  assert (order[:2] != order[2:4]).any()
  assert (lab._order(1, 10, 4, 5) != order).any()


def test_misfits_are_refused():
  with pytest.raises(ValueError, match="3 rows are fewer than one batch of 4"):
    lab.train(mixed(), {"image": images(3)}, digits.views)
  with pytest.raises(ValueError, match=r"recipe.towers.hiden: did you mean hidden"):
    lab.train(mixed(towers=[dict(name="image", hiden=(1,))]), {"image": images()})


def test_every_arm_is_tuned_on_the_same_grid_and_seeds():
  asked = []

  def measure(settings):
    asked.append(settings)
    arm, seed, lr = settings
    return Measured({"a": lr if arm == "new" else -lr, "b": seed})

  claim = types.SimpleNamespace(
    ARMS=("old", "new"),
    GRID=dict(lr=(1.0, 2.0)),
    MERIT=("a", "b"),
    settings=lambda arm, seed, lr: (arm, seed, lr),
    measure=measure,
  )
  said = []
  chosen, lines = lab.tune(claim, said.append)
  assert chosen == {"old": {"lr": 1.0}, "new": {"lr": 2.0}}
  assert lines == said and lines[0].startswith("old: 1: 49.750, 2: 49.250")
  assert all(line.endswith("; at the edge of lr") for line in lines)
  assert lab.choice(claim.GRID, claim.MERIT, lines)["pilots"] == lines
  assert lab.choice(claim.GRID, claim.MERIT, ())["aim"].startswith("Nothing was tuned")
  for arm in claim.ARMS:
    both = {(seed, lr) for a, seed, lr in asked if a == arm}
    assert both == {(s, x) for s in lab.TUNING_SEEDS for x in (1.0, 2.0)}
  assert lab._edges(dict(lr=(1.0, 2.0, 3.0), steps=(5,)), (2.0, 5)) == ""


def test_views_differ_and_fields_are_smooth():
  image = jnp.asarray(images(3))
  made = digits.views({"image": image, "id": 1}, jax.random.key(0), count=3, erase=2)
  assert made.keys() == {"image_1", "image_2", "image_3", "id"}
  assert (made["image_1"] != made["image_2"]).any()
  same = digits.view(image, jax.random.key(0), shift=0, noise=0.0)
  np.testing.assert_array_equal(same, image)
  coarse = np.random.default_rng(0).normal(size=(2, 3, 3))
  field = digits.fields(coarse)[..., 0]
  np.testing.assert_allclose(field[:, ::7, ::7], coarse[:, ::2, ::2], rtol=1e-5)
  assert field.max() <= coarse.max() + 1e-5  # between its values


def test_digits_are_split_by_sample():
  pytest.importorskip("sklearn", reason="needs requirements-demo.txt")
  a, b, other = digits.load(0, 1000), digits.load(0, 1000, 0.5), digits.load(1, 1000)
  assert a.image.shape == (1000, 8, 8, 1) and len(a.test_label) == 797
  assert a.image.min() >= 0 and a.image.max() == 1
  rows = {x.tobytes() for x in a.image} & {x.tobytes() for x in a.test_image}
  assert not rows
  assert sorted(np.concatenate([a.label, a.test_label])) == sorted(
    np.concatenate([other.label, other.test_label])
  )
  assert (a.label != other.label).any() and (a.image != b.image).any()
  with pytest.raises(ValueError, match=r"must be in 1\.\.1796"):
    digits.load(0, 1797)
