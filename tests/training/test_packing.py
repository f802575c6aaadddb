"""A packed step, traced: what is put on devices, logged, and refused."""

import jax
import numpy as np
import pytest

from input_pipeline import packing
from tests import small
from training import setup as setup_lib
from training import step as step_lib

PACK = dict(tokens=4, rows=2, group=4)


def packed(**changes):
  c = small.tiny(**changes)
  c.mesh.data = -1
  c.batch_size = 64
  c.model.modalities.text.pack.update(PACK)
  return c


def test_a_step_takes_the_plan_and_logs_it():
  config = packed(microbatches=2)
  setup = setup_lib.build(config)
  batch = packing.packed(packing.packers(config), small.batch_of(config))
  with jax.set_mesh(setup.mesh):
    rows = setup.put(batch)
    state = setup.abstract_state()
    _, metrics = jax.eval_shape(setup.train_step(), state, rows)
    encode = step_lib.eval_encode(setup.towers)
    _, aux = jax.eval_shape(encode, state.params, rows)
  assert not any("pack" in key for key in aux)  # evaluation sees rows as they are
  assert {"metrics/pack/text_cut", "metrics/pack/text_filled"} < set(metrics)
  np.testing.assert_array_equal(rows["text_pack"], batch["text_pack"])
  spec = setup.batch_spec(train=True)
  assert {k: (rows[k].shape, rows[k].dtype) for k in spec} == {
    k: (s.shape, s.dtype) for k, s in spec.items()
  }
  assert "text_pack" not in setup.batch_spec()


def test_groups_must_not_cross_devices():
  config = packed()
  config.model.modalities.text.pack.group = 16
  key = r"config\.model\.modalities\.text\.pack\.group"
  with pytest.raises(ValueError, match=rf"8 examples, .* groups of 16\. Set {key} to"):
    setup_lib.build(config)
