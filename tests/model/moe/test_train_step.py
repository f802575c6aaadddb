"""The whole LIMoE train step on 8 devices against one: loss and parameters.

Routing is discontinuous: where two gates tie, or two priorities at the end of a queue,
rounding may send a token elsewhere, and no tolerance would be right. So the test is
fair only while no such tie is near. Noise is drawn for the global batch by one key, so
that it is the same on every mesh; the data are random, with gates and priorities that
differ by far more than rounding (1e-7); and five steps are too few for rounding to
grow to their distance. A token that did go elsewhere would move the loss by far more
than the tolerance, and fail the test rather than hide in it.

The biases of attention's keys are frozen. The softmax does not see them, so that their
gradient is 0 but for rounding, and AdamW, which divides by its size, makes whole steps
of it: they would differ between any two programs, and with no effect.
"""

import jax
import numpy as np
import pytest

from tests.small import batch_of, limoe
from training import setup as setup_lib

STEPS = 5


def _run(devices, mesh, **changes):
  """Returns the losses, the last step's metrics and the parameters after 5 steps."""
  config = limoe()
  config.mesh.update(mesh)
  config.model.moe.update(dict(group=2) | changes)
  config.optimizer.frozen = ("attention/key/bias",)
  setup = setup_lib.build(config, devices)
  losses = []
  with jax.set_mesh(setup.mesh):
    state, step = setup.init_state(), setup.train_step()
    for seed in range(STEPS):
      state, metrics = step(state, setup.put(batch_of(config, seed)))
      losses.append(float(metrics["loss"]))
  return losses, jax.device_get(metrics), jax.device_get(state.params)


@pytest.fixture(scope="module")
def single():
  return _run(jax.devices()[:1], dict(data=1), k=2, capacity=0.8)


@pytest.mark.parametrize(
  "mesh", [dict(data=2, fsdp=2, expert=2), dict(data=2, expert=2, tensor=2)]
)
def test_eight_devices_train_as_one(single, mesh):
  losses, metrics, params = single
  assert losses[0] - losses[-1] > 0.01, "the steps must train"
  served = float(metrics["metrics/moe/layer01/served/image"])
  assert 0.5 < served < 1, "tokens must be dropped"
  actual_losses, actual_metrics, actual = _run(jax.devices(), mesh, k=2, capacity=0.8)
  np.testing.assert_allclose(actual_losses, losses, rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, params)
  for name, value in metrics.items():  # the same tokens went the same ways
    if "/served/" in name or "/load/" in name:
      np.testing.assert_allclose(actual_metrics[name], value, rtol=1e-6)


@pytest.mark.parametrize(
  "changes",
  [
    dict(dispatch="dropless", dropless_kernel="ragged_dot", group=2),
    dict(router="expert_choice", group=1),
    dict(router="soft", group=1, slots=2),
  ],
)
def test_every_router_trains_under_scan_and_recomputation(changes):
  config = limoe()
  config.model.update(dict(scan=True, remat="full"))
  config.model.trunk.depth = 2
  if "router" in changes:
    config.model.moe.losses.load = 0.0
  config.model.moe.update(changes)
  setup = setup_lib.build(config, jax.devices()[:1])
  with jax.set_mesh(setup.mesh):
    state, step = setup.init_state(), setup.train_step()
    before = jax.device_get(state.params["towers"]["trunk"])
    batch = setup.put(batch_of(config))
    losses = []
    for _ in range(4):
      state, metrics = step(state, batch)
      losses.append(float(metrics["loss"]))
    after = jax.device_get(state.params["towers"]["trunk"])
  assert losses[-1] < losses[1] - 0.05  # the first step has a learning rate of 0
  moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, after)
  sparse = moved["blocks"]["block_01"]["moe"]
  assert all(jax.tree.leaves(sparse)), sparse
  assert 0 < float(metrics["metrics/moe/layer01/served/text"]) <= 1 + 1e-6
