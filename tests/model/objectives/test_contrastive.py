"""The default objective: encode once, normalise, weighted sum of named losses."""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict
import numpy as np
import pytest

from model import catalogue
from model.losses import filip, infonce, siglip
from model.objectives import contrastive
from model.types import Encoded

B, D = 6, 4
KEY = jax.random.key(0)
IMAGE_TEXT = (("image", "text"),)


def features(seed=0):
  rng = np.random.default_rng(seed)
  return {
    m: jnp.asarray(5 * rng.normal(size=(B, D)), jnp.float32) for m in ("image", "text")
  }


def run(objective, x, batch=None):
  params, state = objective.init(KEY, None, {m: None for m in x})
  calls = []

  def encode(batch, using="online"):
    calls.append(using)
    return {m: Encoded(pooled=v) for m, v in x.items()}

  out = objective(params, state, encode, batch or {}, KEY, jnp.int32(0))
  assert calls == ["online"]
  return out


def test_sums_the_weighted_losses_of_normalised_embeddings():
  x = features()
  objective = contrastive.Objective(
    losses=(
      ("infonce", 0.5, ConfigDict(dict(pairs=IMAGE_TEXT, temperature=0.1))),
      ("siglip", 2.0, {}),
    )
  )
  out = run(objective, x)
  z = {m: v / np.linalg.norm(v, axis=-1, keepdims=True) for m, v in x.items()}
  first, second = infonce.Loss(temperature=0.1), siglip.Loss()
  a, b = (loss(loss.init(KEY), z, {})[0] for loss in (first, second))
  np.testing.assert_allclose(out.loss, 0.5 * a + 2 * b, rtol=1e-6)
  np.testing.assert_allclose(out.metrics["infonce/loss"], a, rtol=1e-6)
  np.testing.assert_allclose(out.metrics["siglip/loss"], b, rtol=1e-6)
  np.testing.assert_allclose(out.metrics["infonce/temperature"], 0.1, rtol=1e-6)
  assert out.state == {}


def test_a_loss_may_ask_for_tokens():
  """filip sees each side's tokens and mask; infonce, beside it, the pooled ones."""
  x = features()
  words = {m: jnp.stack([v, -v, 7 * v[::-1]], axis=1) for m, v in x.items()}
  mask = jnp.asarray(np.arange(3)[None] < np.array([1, 2, 3, 1, 2, 3])[:, None])
  sides = {m: Encoded(x[m], words[m], mask) for m in x}
  objective = contrastive.Objective(losses=(("filip", 2.0, {}), ("infonce", 1.0, {})))
  params, _ = objective.init(KEY, None, x)
  out = objective(params, {}, lambda batch, using: sides, {}, KEY, jnp.int32(0))
  late, pooled = filip.Loss(), infonce.Loss()
  want = late(late.init(KEY), sides, {})[0]
  z = {m: contrastive.normalize(v) for m, v in x.items()}
  np.testing.assert_allclose(out.metrics["filip/loss"], want, rtol=1e-6)
  want = 2 * want + pooled(pooled.init(KEY), z, {})[0]
  np.testing.assert_allclose(out.loss, want, rtol=1e-6)


def test_each_loss_has_its_own_parameters():
  losses = (
    ("infonce", 1.0, {"temperature": 0.5}),
    ("siglip", 1.0, {}),
    ("infonce", 1.0, {"temperature": 0.05}),
    ("infonce", 1.0, {"learned": False}),
  )
  objective = contrastive.Objective(losses=losses)
  params, _ = objective.init(KEY, None, features())
  assert set(params) == {"infonce", "siglip", "infonce_2"}
  metrics = run(objective, features()).metrics
  np.testing.assert_allclose(metrics["infonce/temperature"], 0.5, rtol=1e-6)
  np.testing.assert_allclose(metrics["infonce_2/temperature"], 0.05, rtol=1e-6)
  np.testing.assert_allclose(metrics["infonce_3/temperature"], 0.07, rtol=1e-6)


def test_masked_rows_do_not_count():
  x = features()
  valid = np.arange(B) != 2
  changed = {m: v.at[2].set(100.0) for m, v in x.items()}
  objective = contrastive.Objective()
  one, two = (run(objective, v, {"valid": valid}).loss for v in (x, changed))
  assert one == two != run(objective, x).loss


def test_rows_without_a_modality_do_not_count_in_its_pairs():
  x, lacks = features(), np.arange(B) == 2
  objective = contrastive.Objective()
  none = run(objective, x, {"valid": ~lacks}).loss
  assert (
    none == run(objective, x, {"text_valid": ~lacks}).loss != run(objective, x).loss
  )


def test_a_zero_embedding_has_a_finite_gradient():
  grad = jax.grad(lambda x: jnp.sum(contrastive.normalize(x)))(jnp.zeros((2, 3)))
  assert np.isfinite(grad).all()


def test_is_built_from_a_config_and_can_be_hashed():
  options = dict(losses=[["infonce", 1.0, ConfigDict(dict(pairs=IMAGE_TEXT))]])
  build = lambda: catalogue.load(  # noqa: E731
    "model.objectives", "contrastive", "Objective", options
  )
  assert build() == build() and hash(build()) == hash(build())
  assert build() != contrastive.Objective(losses=(("siglip", 1.0, {}),))


@pytest.mark.parametrize(
  ("losses", "message"),
  [
    ((("infonse", 1.0, {}),), "no 'infonse' in model/losses/: did you mean infonce"),
    ((("reduce", 1.0, {}),), "reduce.py defines no Loss"),
    ((("infonce", 1.0, {"temprature": 1.0}),), "did you mean temperature"),
    (("infonce",), r"losses\[0\] = 'infonce' must be \(name, weight, options\)"),
    ((), "config.objective.options.losses is empty"),
  ],
)
def test_unknown_names_and_options_list_near_misses(losses, message):
  with pytest.raises(ValueError, match=message):
    contrastive.Objective(losses=losses)


def test_a_missing_modality_is_named():
  objective = contrastive.Objective(
    losses=(("infonce", 1.0, {"pairs": (("image", "audio"),)}),)
  )
  with pytest.raises(ValueError, match=r"the batch has no 'audio'.*config\.model\."):
    objective.init(KEY, None, features())
  with pytest.raises(ValueError, match="loss 'infonce' compares pairs = "):
    objective(
      {}, {}, lambda b, using: {"image": Encoded(features()["image"])}, {}, KEY, 0
    )
  three = contrastive.Objective(losses=(("symile", 1.0, {}),))
  with pytest.raises(ValueError, match=r"no 'audio'.*Set the modalities of config\."):
    three.init(KEY, None, features())
