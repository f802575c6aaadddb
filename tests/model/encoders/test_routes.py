"""Each token's experts, told apart by layer and modality, agree with the metrics."""

import jax
import numpy as np
import pytest

from model.encoders import stacking, towers
from tests.small import batch_of, limoe, tiny
from training import step as step_lib


def _model(shared, scan=False):
  c = limoe()
  c.batch_size = 8
  c.model.trunk.depth = 4
  c.model.shared_trunk = shared
  c.model.scan = scan
  c.model.modalities.image.pool = "cls"
  return c, towers.build(c.model)


def _encode(model, params, batch):
  run = jax.jit(step_lib.eval_encode(model))
  return jax.tree.map(np.asarray, run({"towers": params}, batch)[1])


@pytest.mark.parametrize("shared", [True, False])
def test_routes_add_up_to_the_loads(shared):
  c, model = _model(shared)
  batch = batch_of(c)
  batch["valid"][-1] = False
  params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
  aux = _encode(model, params, batch)
  real = {
    "image": np.broadcast_to(batch["valid"][:, None], (8, 5)),  # the class token too
    "text": batch["text_mask"] & batch["valid"][:, None],
  }
  loads = {}
  for layer in ("layer01", "layer03"):
    for m, here in real.items():
      route = {w: aux[f"routes/{layer}/{m}/{w}"] for w in ("index", "served", "gate")}
      assert route["index"].shape == (*here.shape, 1)
      np.testing.assert_array_equal(route["index"][..., 0] >= 0, here)
      served = route["index"][route["served"]]
      load = np.bincount(served, minlength=4) / here.sum()
      np.testing.assert_allclose(
        aux[f"metrics/moe/{layer}/load/{m}"], load, rtol=1e-6, atol=1e-7
      )
      assert (route["gate"][here] > 0.25 - 1e-6).all()  # the largest of four
      loads[layer, m] = tuple(load)
  assert len(set(loads.values())) == 4  # else a mix-up would not show
  if shared:
    scanned = _encode(_model(True, scan=True)[1], stacking.stack_layers(params), batch)
    routes = [k for k in aux if k.startswith("routes/")]
    assert len(routes) == 12
    for key in routes:
      np.testing.assert_allclose(scanned[key], aux[key], atol=1e-5, err_msg=key)


def test_a_dense_model_has_no_routes():
  c = tiny()
  c.batch_size = 2
  model = towers.build(c.model)
  batch = batch_of(c)
  params = jax.jit(model.init)(jax.random.key(0), batch)["params"]
  assert not [k for k in _encode(model, params, batch) if k.startswith("routes/")]
