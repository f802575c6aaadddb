"""The best checkpoint is picked by a metric that exists, or the run says so."""

import jax
import pytest

from tests.small import limoe, one_device, tiny
from training import checkpoint, evaluation


def test_a_best_metric_of_no_evaluator_is_refused_at_the_start(tmp_path):
  config = tiny()
  config.evaluators = (("health", 0, {}),)
  config.checkpoint.best = "helth/alignment"
  with pytest.raises(ValueError, match=r"no evaluator \(did you mean health\?\)"):
    evaluation.build(one_device(config), str(tmp_path))
  config.checkpoint.best = "health/uniformity/image"
  assert [e.name for e in evaluation.build(one_device(config), "")] == ["health"]


def test_a_best_metric_that_its_evaluator_does_not_give_is_refused(tmp_path):
  options = tiny().checkpoint
  options.best = "health/nothing"
  keeper = checkpoint.Checkpointer(str(tmp_path), options)
  setup = one_device(tiny())
  with jax.set_mesh(setup.mesh):
    state = setup.init_state()
  with pytest.raises(ValueError, match=r"'health/nothing' is not among"):
    keeper.save(1, state, {}, {"health/uniformity/image": 1.0})
  keeper.close()
  assert keeper.latest_step() == 1  # what was trained is not lost


def test_a_batch_that_is_not_whole_groups_is_refused_at_the_start(tmp_path):
  config = limoe()
  config.evaluators = (("health", 0, {"batch_size": 10}),)
  with pytest.raises(ValueError, match=r"health, batch_size = 10: .* groups"):
    evaluation.build(one_device(config), str(tmp_path))
  config.evaluators = (("health", 0, {"batch_size": 8}),)
  assert len(evaluation.build(one_device(config), str(tmp_path))) == 1
