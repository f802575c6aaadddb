"""Rows that lack a modality, as in mixtures of unequal sources, in a sparse step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small import batch_of, limoe, one_device
from training import step as step_lib


@pytest.fixture(scope="module")
def loss():
  """Returns a function: batch -> (loss, metrics), gradient; compiled once."""
  config = limoe()
  setup = one_device(config)
  with jax.set_mesh(setup.mesh):
    state = setup.init_state()
    fn = step_lib.make_loss(config, setup.towers, setup.objective)
    grad = jax.jit(jax.value_and_grad(fn, has_aux=True))
    return config, lambda batch: grad(state.params, state, batch)


def partial(config):
  """A batch whose last quarter has no image, and the quarter before it no text."""
  batch, rows = batch_of(config), np.arange(config.batch_size)
  has = {"image_valid": rows < 12, "text_valid": (rows < 8) | (rows >= 12)}
  height = config.model.modalities.image.size[0]
  batch["image_mask"] = np.tile(has["image_valid"][:, None], (1, height))
  batch["text_mask"] = batch["text_mask"] & has["text_valid"][:, None]
  batch["image"] = batch["image"] * has["image_valid"][:, None, None, None]
  batch["text"] = np.where(has["text_valid"][:, None], batch["text"], 0)
  return batch | has


def test_what_a_row_lacks_has_no_say(loss):
  config, run = loss
  batch = partial(config)
  (value, (metrics, _)), grads = run(batch)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((value, grads)))
  other = batch | {
    "image": np.where(batch["image_mask"][:, :, None, None], batch["image"], 9),
    "text": np.where(batch["text_valid"][:, None], batch["text"], 7).astype(np.int32),
  }
  other["image"] = other["image"].astype(np.float32)
  (again, (same, _)), others = run(other)
  assert value == again
  jax.tree.map(np.testing.assert_array_equal, (metrics, grads), (same, others))


def test_rows_with_both_are_all_that_pairs_see(loss):
  config, run = loss
  batch = partial(config)
  (_, (metrics, _)), _ = run(batch)
  few = batch | {"valid": np.arange(config.batch_size) < 8}
  (_, (want, _)), _ = run(few)
  # The router sees more rows than the loss does.
  names = [k for k in metrics if k.startswith("infonce/")]
  assert names
  for name in names:
    np.testing.assert_allclose(metrics[name], want[name], rtol=1e-5)
  changed = batch | {"text": np.roll(batch["text"], 1, axis=1)}
  moved = run(changed)[0][1][0]["losses/objective"]
  assert not jnp.allclose(moved, metrics["losses/objective"])
