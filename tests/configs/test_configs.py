"""Every recipe builds, has the size it claims, and its small form takes two steps."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from configs import args as args_lib
from configs import base
from model.encoders import count
from training import setup as setup_lib

FOLDER = pathlib.Path(base.__file__).parent
RECIPES = sorted(
  p.stem
  for p in FOLDER.glob("*.py")
  if "def get_config(" in p.read_text() and p.stem != "base"
)


def recipe(name: str, arg: str = "") -> ConfigDict:
  return importlib.import_module(f"configs.{name}").get_config(arg)


def leaves(config, prefix=""):
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      yield from leaves(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def test_all_the_recipes_are_here():
  assert set(RECIPES) >= {
    "limoe_emoji",
    "clip_emoji",
    "siglip_emoji",
    "lit_emoji",
    "clip_b16",
    "siglip_b16",
    "limoe_s32",
    "limoe_b16",
    "limoe_l16",
    "limoe_h14",
  }


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_sets_no_key_that_base_does_not_explain(name):
  free = ("data.options.", "objective.options.", "model.modalities.", "model.moe.")
  known = {key for key, _ in leaves(base.get_config())}
  for key, _ in leaves(recipe(name)):
    assert key in known or key.startswith(free), key


@pytest.mark.parametrize("name", RECIPES)
def test_the_small_form_says_how_it_goes(name):
  config = recipe(name, "runlocal")
  assert config.total_steps // config.log_every >= 4


@pytest.mark.parametrize("name", RECIPES)
def test_builds_abstractly(name):
  config = recipe(name)
  config.mesh.update(dict(data=1, fsdp=1, expert=1))
  setup = setup_lib.build(config, devices=jax.devices()[:1])
  with jax.set_mesh(setup.mesh):
    state = setup.abstract_state()
  assert all(x.dtype != jnp.float64 for x in jax.tree.leaves(state))
  assert config.name == name
  doc = importlib.import_module(f"configs.{name}").__doc__
  assert f"--config configs/{name}.py" in doc, "the command stands on top of a recipe"


@pytest.mark.parametrize(
  ("name", "total", "active"),
  [
    # arXiv 2206.02770: about 1.7 B and 0.3 B; about 5.6 B and 675 M. The totals fix how
    # many blocks are sparse: see the recipes.
    ("limoe_l16", 1.7e9, 0.34e9),
    ("limoe_h14", 5.6e9, 0.675e9),
    # ViT-B/16 and CLIP's text transformer: 86 M + 38 M + 16 M of embeddings.
    ("clip_b16", 0.141e9, 0.141e9),
  ],
)
def test_parameter_counts(name, total, active):
  table = count.parameter_table(recipe(name).model)
  assert table.total == pytest.approx(total, rel=0.04)
  assert table.active == pytest.approx(active, rel=0.04)


def test_the_dense_twin_has_the_active_size_of_the_sparse_model():
  sparse, dense = recipe("limoe_emoji").model, recipe("clip_emoji").model
  flops = count.flops_per_example(sparse), count.flops_per_example(dense)
  # The router is the difference.
  assert sum(flops[0].values()) == pytest.approx(sum(flops[1].values()), rel=0.02)


@pytest.mark.parametrize("name", ["limoe_s32", "limoe_b16", "limoe_l16", "limoe_h14"])
def test_sparse_recipes_waste_little_on_routers_and_empty_slots(name):
  sparse, twin = recipe(name).model, recipe(name).model
  twin.moe.update(dict(every=0, layers=()))
  useful, dense = (sum(count.flops_per_example(m).values()) for m in (sparse, twin))
  slots = sum(count.flops_per_example(sparse, capacity=True).values())
  assert dense < useful < 1.01 * dense
  assert useful < slots < 1.03 * dense  # a small group's slots, rounded up, cost more


@pytest.mark.parametrize(
  "name",
  # Those of tests/entry/test_modalities.py, which compile the same, with more.
  [
    n if not n.endswith("_text") else pytest.param(n, marks=pytest.mark.slow)
    for n in RECIPES
  ],
)
def test_its_small_form_takes_two_steps(name):
  config = recipe(name, "runlocal")
  setup = setup_lib.build(config, devices=jax.devices()[:1])
  rng = np.random.default_rng(0)
  spec = setup.batch_spec()
  batch = {}
  for key, s in spec.items():
    if s.dtype == jnp.int32:
      high = config.model.modalities[key].vocab
      batch[key] = rng.integers(1, high, s.shape).astype(np.int32)
    elif s.dtype == jnp.bool_:
      batch[key] = np.ones(s.shape, bool)
    else:
      batch[key] = rng.standard_normal(s.shape).astype(np.float32)
  batch["id"] = np.arange(config.batch_size, dtype=np.int32)
  with jax.set_mesh(setup.mesh):
    state, step = setup.init_state(), setup.train_step()
    for _ in range(2):
      state, metrics = step(state, setup.put(batch))
  assert np.isfinite(float(metrics["loss"]))
  assert int(state.step) == 2


EMOJI = [name for name in RECIPES if name.endswith("_emoji")]


@pytest.mark.parametrize("name", EMOJI)
def test_without_tune_nothing_is_picked_by_the_test_split(name):
  plain = recipe(name)
  assert plain.checkpoint.best == ""
  assert plain.data.options.validation_share == 0.0
  assert {o.get("split", "test") for _, _, o in plain.evaluators} == {"test", "train"}


@pytest.mark.parametrize("name", EMOJI)
@pytest.mark.parametrize("arg", ["tune", "tune,runlocal"])
def test_tune_never_looks_at_the_test_split(name, arg):
  tuned = recipe(name, arg)
  assert tuned.checkpoint.best == "retrieval/i2t_r10"
  assert tuned.data.options.validation_share == 0.12
  for _, _, options in tuned.evaluators:
    looked = {options.get("split", "test"), *options.get("count_splits", ())}
    assert looked <= {"train", "validation"}, options
  assert tuned.name == f"{name}_tune"
  with pytest.raises(ValueError, match="do not go together"):
    recipe(name, "tune,styles")


def test_arguments_have_types_and_suggest_names():
  got = args_lib.parse("runlocal,seed=3", runlocal=False, seed=0, data="")
  assert (got.runlocal, got.seed, got.data) == (True, 3, "")
  with pytest.raises(ValueError, match="did you mean runlocal"):
    args_lib.parse("runlocl", runlocal=False)
  with pytest.raises(ValueError, match="'x' is not int"):
    args_lib.parse("seed=x", seed=0)
