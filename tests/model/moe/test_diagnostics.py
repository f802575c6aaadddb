"""The metrics of a sparse layer against numpy, from a routing that is made up."""

import jax.numpy as jnp
import numpy as np
import pytest

from model.moe import diagnostics
from model.moe.router import Chosen, Routing

G, S, E = 2, 300, 4


def _routing(load, logits, mask):
  gates = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  load = np.where(mask[..., None], load, 0)
  arrays = (np.asarray(x, np.float32) for x in (logits, logits, gates, load))
  logits, noisy, gates, load = map(jnp.asarray, arrays)
  routes = Chosen(gate=gates[..., :1], expert=jnp.zeros((G, S, 1), jnp.int32))
  served = jnp.any(load > 0, axis=-1).astype(jnp.float32)
  return Routing(routes, logits, noisy, gates, load, served)


def _data(shares):
  rng = np.random.default_rng(0)
  mask = rng.random((G, S)) < 0.9
  expert = rng.choice(E, p=shares, size=(G, S))
  load = np.eye(E)[expert] * (rng.random((G, S, 1)) < 0.8)
  return load, 2 * rng.standard_normal((G, S, E)), mask


def test_metrics_are_the_definitions():
  load, logits, mask = _data([0.4, 0.3, 0.2, 0.1])
  logits[~mask] = 99  # padding's
  image = mask & (np.arange(S) < 200)
  masks = {"image": jnp.asarray(image), "text": jnp.asarray(mask & ~image)}
  got = diagnostics.metrics(_routing(load, logits, mask), jnp.asarray(mask), masks)
  gates = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  for name, here in (("image", image), ("text", mask & ~image)):
    mean = gates[here].mean(0)
    expected = {
      "effective_experts": np.exp(-np.sum(mean * np.log(mean))),
      "token_entropy": -np.sum(gates[here] * np.log(gates[here]), -1).mean(),
      "served": load[here].sum() / here.sum(),
      "load": load[here].mean(0),
    }
    for what, value in expected.items():
      np.testing.assert_allclose(got[f"{what}/{name}"], value, rtol=1e-4, err_msg=what)
  assert float(got["router_logit_scale"]) == pytest.approx(np.abs(logits[mask]).max())
  assert float(got["dead_experts"]) == 0


@pytest.mark.parametrize(("tokens", "dead"), [(0, 2), (1, 2), (3, 1)])
def test_dead_experts_have_less_than_a_hundredth_of_the_mean(tokens, dead):
  load, logits, mask = _data([0.5, 0.5, 0.0, 0.0])
  mask[:] = True
  load[:, :, 2] = 0
  load[0, :tokens] = np.eye(E)[2]
  mean = load.sum((0, 1)).mean()
  assert mean > 100 and 1 < 0.01 * mean < 3
  assert np.sum(load.sum((0, 1)) < 0.01 * mean) == dead
  got = diagnostics.metrics(_routing(load, logits, mask), jnp.asarray(mask), {})
  assert float(got["dead_experts"]) == dead


def test_padding_alone_has_no_dead_experts():
  load, logits, mask = _data([0.5, 0.5, 0.0, 0.0])
  none = np.zeros_like(mask)
  got = diagnostics.metrics(_routing(load, logits, none), jnp.asarray(none), {})
  assert {k: float(v) for k, v in got.items()} == {
    "router_logit_scale": 0,
    "dead_experts": 0,
  }
