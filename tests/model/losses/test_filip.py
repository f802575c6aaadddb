"""FILIP against a loop over pairs and tokens in f64; its padding, meshes and memory."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from model.losses import filip, infonce
from model.types import MESH_AXES, Encoded
from tests import slopes

B, K, R, D, T = 5, 3, 4, 4, 0.3
VALID = np.arange(B) != 2
RNG = np.random.default_rng(0)
MASKS = {
  "image": np.ones((B, K), bool),
  "text": np.arange(R)[None] < np.array([4, 2, 0, 1, 3])[:, None],
}


def make(b=B):
  common = RNG.normal(size=(b, 1, D))
  sizes = {"image": K, "text": R}
  return {
    m: (common + RNG.normal(size=(b, n, D))).astype(np.float32)
    for m, n in sizes.items()
  }


def similarity(x, y):
  """mean over tokens of x of their greatest cosine with those of y."""
  unit = [v / np.linalg.norm(v, axis=-1, keepdims=True) for v in (x, y)]
  return np.mean([max(u @ v for v in unit[1]) for u in unit[0]])


def loop(z, t=T):
  """Both directions; each over the other side, from its own scores."""
  real = {m: [x[mask] for x, mask in zip(z[m], MASKS[m])] for m in z}
  rows, total = np.flatnonzero(VALID), 0.0
  for a, b in (("image", "text"), ("text", "image")):
    for i in rows:
      s = {j: similarity(real[a][i], real[b][j]) / t for j in rows}
      total += np.log(sum(np.exp(x) for x in s.values())) - s[i]
  return total / (2 * len(rows))


def encoded(z, masks=MASKS):
  return {m: Encoded(None, x, masks[m]) for m, x in z.items()}


def value_and_grad(loss, masks=MASKS, **batch):
  def f(z):
    return loss({}, encoded(z, masks), batch)

  return jax.jit(jax.value_and_grad(f, has_aux=True))


def test_value_and_slope_are_the_loop():
  def loss(params, z, batch):
    fixed = filip.Loss(temperature=T, learned=False)
    return fixed(params, encoded(z), batch)

  slopes.assert_is(loss, loop, make(), {"valid": VALID})


def test_projections_and_temperature_have_the_loops_slope():
  z = make()
  loss = filip.Loss(
    widths=(("image", D), ("text", D)), projection=3, temperature=T, max_scale=10.0
  )
  params = jax.tree.map(np.asarray, loss.init(jax.random.key(0)))

  def with_params(_, params, batch):
    return loss(params, encoded(z), batch)

  def want(p):
    x = {m: np.float64(z[m]) @ p[f"project_{m}"] for m in z}
    return loop(x, np.exp(-p["log_scale"]))

  slopes.assert_is(with_params, want, params, {"valid": VALID})


def test_one_token_each_is_infonce():
  z = {m: x[:, :1] for m, x in make().items()}
  got = value_and_grad(filip.Loss(learned=False), {"image": None, "text": None})(z)
  unit = {m: x[:, 0] / np.linalg.norm(x[:, 0], axis=-1)[:, None] for m, x in z.items()}
  want = jax.jit(infonce.Loss(learned=False))({}, unit, {})
  np.testing.assert_allclose(got[0][0], want[0], rtol=3e-6)


def test_padding_of_any_length_and_content_changes_nothing():
  z = make()
  loss = filip.Loss(temperature=T, learned=False)
  (want, _), want_grad = value_and_grad(loss)(z)
  pad = np.full((B, 10, D), np.nan, np.float32)
  longer = {m: np.concatenate([x, pad], axis=1) for m, x in z.items()}
  masks = {m: np.pad(x, ((0, 0), (0, 10))) for m, x in MASKS.items()}
  (got, _), grad = value_and_grad(loss, masks)(longer)
  np.testing.assert_allclose(got, want, rtol=1e-6)
  for m, x in z.items():
    inside = grad[m][:, : x.shape[1]]
    np.testing.assert_allclose(inside, want_grad[m], atol=1e-6)
    assert np.all(grad[m][~masks[m]] == 0)


def test_a_text_without_words_has_a_finite_slope():
  z = make()
  (value, _), grad = value_and_grad(filip.Loss(learned=False))(z)  # row 2 is valid
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in grad.values())


@pytest.mark.parametrize("valid", [np.zeros(B, bool), np.arange(B) == 1])
def test_nothing_to_compare_with_is_zero(valid):
  (value, _), grad = value_and_grad(filip.Loss(learned=False), valid=valid)(make())
  np.testing.assert_allclose(value, 0, atol=1e-6)
  np.testing.assert_allclose(grad["image"], 0, atol=1e-6)


@pytest.mark.parametrize("strategy", ["dense", "tiled", "ring"])
def test_meshes_and_strategies_are_the_plain_product(strategy):
  """13 rows that 8 devices cannot share, against all [b, k, b, r] at once."""
  b = 13
  z = make(b)
  masks = {m: np.resize(x, (b, x.shape[1])) for m, x in MASKS.items()}
  valid = np.arange(b) % 4 != 1
  loss = filip.Loss(temperature=T, learned=False, strategy=strategy, tile=2)

  def plain(z):
    total = 0.0
    for x, y in (("image", "text"), ("text", "image")):
      u, v = (z[m] / jnp.linalg.norm(z[m], axis=-1, keepdims=True) for m in (x, y))
      s = jnp.einsum("ikd,jrd->ikjr", u, v, precision="highest") / T
      s = jnp.where(masks[y][None, None], s, -jnp.inf)
      s = jnp.where(masks[y].any(-1)[None, None], s.max(-1), 0.0)
      w = masks[x] / np.maximum(masks[x].sum(-1, keepdims=True), 1)
      s = jnp.einsum("ikj,ik->ij", s, w.astype(np.float32), precision="highest")
      lse = jax.nn.logsumexp(s, axis=1, where=valid[None])
      total += jnp.mean((lse - jnp.diagonal(s))[valid]) / 2
    return total

  want, want_grad = jax.jit(jax.value_and_grad(plain))(z)
  auto = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
  mesh = jax.make_mesh((2, 2, 2, 1), MESH_AXES, axis_types=auto)
  with jax.set_mesh(mesh):
    whole = jax.NamedSharding(mesh, P())
    f = value_and_grad(loss, masks, valid=valid)
    (value, _), grad = jax.device_get(f(jax.device_put(z, whole)))
  np.testing.assert_allclose(value, want, rtol=3e-6)
  for m in z:
    np.testing.assert_allclose(grad[m], want_grad[m], atol=3e-6)


def temp_bytes(b, strategy, k=8, r=8):
  loss = filip.Loss(strategy=strategy, tile=4)
  params = jax.eval_shape(loss.init, jax.random.key(0))

  def f(params, z):
    return loss(params, {m: Encoded(None, x, None) for m, x in z.items()}, {})[0]

  x = {"image": k, "text": r}
  z = {m: jax.ShapeDtypeStruct((b, n, D), jnp.float32) for m, n in x.items()}
  compiled = jax.jit(jax.grad(f, argnums=(0, 1))).lower(params, z).compile()
  return compiled.memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_batch_not_with_its_square():
  small, large = (temp_bytes(b, "tiled") for b in (128, 256))
  assert large < 2.2 * small
  assert large < 256 * 8 * 256 * 8 * 4 / 4  # a quarter of what all pairs take
  assert temp_bytes(256, "dense") > 256 * 8 * 256 * 8 * 4


def test_errors_say_what_to_set():
  z = make()
  with pytest.raises(ValueError, match="the tower gives none for 'image'"):
    filip.Loss(learned=False)({}, {m: Encoded(x[:, 0]) for m, x in z.items()}, {})
  widths = (("image", 7), ("text", D))
  loss = filip.Loss(widths=widths, learned=False)
  with pytest.raises(ValueError, match=r"has 7 for 'image', whose tokens are 4 wide"):
    loss(loss.init(jax.random.key(0)), encoded(z), {})
  with pytest.raises(ValueError, match=r"must name \['text'\] too"):
    filip.Loss(widths=widths[:1])
  with pytest.raises(ValueError, match="Tokens"):
    uneven = {"image": z["image"], "text": z["text"][..., :3]}
    filip.Loss(learned=False)({}, encoded(uneven), {})
  with pytest.raises(ValueError, match="at least 1 / max_scale"):
    filip.Loss(temperature=0.001)
