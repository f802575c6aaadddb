"""The projection head against numpy: layers, batch norm over valid rows of views."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.heads import projection
from model.types import Encoded

B, W = 6, 5
KEY = jax.random.key(0)


def views(mask=None):
  rng = np.random.default_rng(0)
  return {
    name: Encoded(jnp.asarray(rng.normal(size=(B, W)), jnp.float32), None, mask)
    for name in ("image_1", "image_2")
  }


def normed(x, rows):
  kept = x[:, rows].reshape(-1, x.shape[-1])
  return (x - kept.mean(axis=0)) / np.sqrt(kept.var(axis=0) + 1e-5)


@pytest.mark.parametrize(
  ("options", "hidden"),
  [
    (dict(layers=1, out=3), ()),
    (dict(out=3), (W,)),
    (dict(layers=3, hidden=7, out=3, last_norm=True), (7, 7)),
    (dict(layers=2, hidden=7, out=3, norm="none"), (7,)),
  ],
)
def test_is_the_mlp_of_numpy(options, hidden):
  head = projection.Head(**options)
  rows = np.arange(B) % 3 != 1
  x = views(mask=jnp.asarray(np.tile(rows[:, None], (1, 2))))
  params = head.init(KEY, x)
  # Away from where they start: nothing is 1 or 0.
  params = jax.tree.map(lambda p: p + 0.1 * jax.random.normal(KEY, p.shape), params)
  sizes = [params[f"layer{i}"]["kernel"].shape for i in range(head.layers)]
  assert sizes == list(zip((W, *hidden), (*hidden, 3)))
  got = head(params, x, KEY, True)
  exact = jax.tree.map(lambda p: np.asarray(p, np.float64), params)
  y = np.stack([np.asarray(e.pooled, np.float64) for e in x.values()])
  for i in range(head.layers):
    p, last = exact[f"layer{i}"], i == head.layers - 1
    y = y @ p["kernel"]
    if (last and head.last_norm) or (not last and head.norm == "batch"):
      y = normed(y, rows)
    y = y * p.get("scale", 1) + p.get("offset", 0) + p.get("bias", 0)
    if not last:
      y = np.maximum(y, 0)
  assert list(got) == list(x)
  for name, want in zip(x, y):
    np.testing.assert_allclose(got[name].pooled, want, rtol=2e-5, atol=1e-5)
    assert got[name].mask is x[name].mask


def test_batch_norm_keeps_what_the_next_layer_gets_in_scale():
  head = projection.Head(layers=3, hidden=256, out=8, norm="none")
  x = {"image": Encoded(jax.random.normal(KEY, (64, 32)))}
  out = head(head.init(KEY, x), x, KEY, True)["image"].pooled
  assert 0.5 < float(jnp.std(out)) < 2  # He's initialiser: neither dies nor explodes


def test_one_row_and_none_are_finite():
  for count in (0, 1):
    x = views(mask=jnp.arange(B)[:, None] < count)
    head = projection.Head()
    params = head.init(KEY, x)

    def total(params, x=x, head=head):
      return sum(jnp.sum(e.pooled) for e in head(params, x, KEY, True).values())

    assert all(np.isfinite(g).all() for g in jax.tree.leaves(jax.grad(total)(params)))


def test_errors():
  with pytest.raises(ValueError, match="norm = 'layer'; expected"):
    projection.Head(norm="layer")
  x = views() | {"text": Encoded(jnp.ones((B, W + 1)))}
  with pytest.raises(ValueError, match=r"of different width: \{'image_1': 5"):
    projection.Head().init(KEY, x)
