"""M3CoL: what is encoded and mixed, both phases, and the classifier beside them."""

import functools

import jax
import numpy as np
import pytest

from model.losses import cwcl, m3co
from model.objectives import contrastive, mixup
from model.types import Encoded
from tests.model.losses import loops

B, D = 8, 4
KEY = jax.random.key(1)
BATCH = {
  **loops.make(b=B, d=D),
  "valid": np.arange(B) != 2,
  "label_kind": np.arange(B, dtype=np.int32) % 3,
}
OBJECTIVE = mixup.Objective(
  switch=5,
  beta=1.0,
  probability=0.9,
  heads=((("image", "text"), "fusion", dict(classes=3, layers=1)),),
  always=(
    (
      "multilabel",
      3.0,
      dict(
        modalities=("image_class", "text_class", "fusion_class"),
        labels="label_kind",
        form="softmax",
      ),
    ),
  ),
)
CALLS = []


def encode(batch, using="online"):
  """Towers that change nothing."""
  CALLS.append((using, sorted(batch)))
  return {m: Encoded(batch[m]) for m in ("image", "text") if m in batch}


class Towers:
  """The same, as `init` asks for them."""

  def init(self, key, batch, train):
    return {}

  def apply(self, params, batch, train):
    return encode(batch), {}


@functools.cache
def params():
  spec = {m: BATCH[m] for m in ("image", "text")}
  return jax.jit(lambda key: OBJECTIVE.init(key, Towers(), spec)[0])(KEY)


@functools.cache
def results():
  """(loss, metrics) at the last step of the first phase, and at the next."""

  def f(params, batch, step):
    out = OBJECTIVE(params, {}, encode, batch, KEY, step)
    return out.loss, out.metrics

  f = jax.jit(f)
  return [jax.device_get(f(params(), BATCH, np.int32(step))) for step in (4, 5)]


def test_the_phases_have_their_losses_and_the_classifier_is_in_both():
  (early, metrics), (late, after) = results()
  # Nothing but the weights depends on the step.
  assert metrics["mixup/first"] == 1 and after["mixup/first"] == 0
  for key in ("m3co/loss", "cwcl/loss", "multilabel/loss"):
    np.testing.assert_allclose(metrics[key], after[key], rtol=1e-6)
  supervised = 3 * metrics["multilabel/loss"]
  np.testing.assert_allclose(early, metrics["m3co/loss"] + supervised, rtol=1e-6)
  np.testing.assert_allclose(late, metrics["cwcl/loss"] + supervised, rtol=1e-6)
  assert abs(metrics["m3co/loss"] - metrics["cwcl/loss"]) > 1e-2


def test_the_first_phase_is_m3co_of_images_mixed_before_and_texts_after_their_tower():
  def f(batch):
    encoded, says = OBJECTIVE.mixtures(encode, batch, jax.random.split(KEY)[0])
    z = {m: contrastive.normalize(e.pooled) for m, e in encoded.items()}
    return z, says, m3co.Loss()({}, z, {**batch, **says})[0]

  CALLS.clear()
  z, says, loss = jax.device_get(jax.jit(f)(BATCH))
  made = ["image_mixed_partner", "image_mixed_share"]
  assert [keys for _, keys in CALLS] == [
    sorted(BATCH),
    sorted(["image", "label_kind", "valid", *made]),
  ]
  for m in ("image", "text"):
    partner, share = says[f"{m}_mixed_partner"], says[f"{m}_mixed_share"]
    assert (partner >= 0).sum() > 2
    for i in range(B):
      want = BATCH[m][i]
      if partner[i] >= 0:
        want = share[i] * want + (1 - share[i]) * BATCH[m][partner[i]]
      want = want / np.linalg.norm(want)
      np.testing.assert_allclose(z[f"{m}_mixed"][i], want, rtol=1e-5, atol=1e-6)
  assert np.any(says["image_mixed_partner"] != says["text_mixed_partner"])
  np.testing.assert_allclose(results()[0][1]["m3co/loss"], loss, rtol=1e-6)


def test_the_second_phase_is_the_papers_soft_loss():
  """Targets softmax(b b^T / t) for rows of a, and for rows of b; without gradient."""
  rows = [i for i in range(B) if BATCH["valid"][i]]

  def log_softmax(s):
    return s - np.array([[loops.lse(r)] for r in s])

  still = loops.make(b=B, d=D)

  def loop(z, _):
    total = 0.0
    for x, y in (("image", "text"), ("text", "image")):
      a, b, held = z[x][rows], z[y][rows], np.float64(still[y][rows])
      target = np.exp(log_softmax(held @ held.T / 0.125))
      s = a @ b.T / 0.125
      both = log_softmax(s) + log_softmax(s.T)
      total -= np.mean(np.sum(target * both, axis=1)) / 4
    return total

  ((_, _, options),) = mixup.THEN
  z = {m: BATCH[m] for m in ("image", "text")}
  loops.check(cwcl.Loss(**options), loop, z, {"valid": BATCH["valid"]})


def test_rows_without_a_modality_are_mixed_with_none_and_count_for_nothing():
  batch = {**BATCH, "text_valid": np.arange(B) != 5}
  encoded, says = OBJECTIVE.mixtures(encode, batch, KEY)
  np.testing.assert_array_equal(says["text_mixed_valid"], batch["text_valid"])
  for m in ("image", "text"):
    partner = np.asarray(says[f"{m}_mixed_partner"])
    assert partner[5] == -1 and not np.isin(partner, (2, 5)).any()
    np.testing.assert_array_equal(encoded[f"{m}_mixed"].pooled[5], batch[m][5])

  @jax.jit
  def losses(text):
    own = {**batch, "text": text}
    metrics = OBJECTIVE(params(), {}, encode, own, KEY, np.int32(0)).metrics
    return metrics["m3co/loss"], metrics["cwcl/loss"]

  text = np.array(batch["text"])
  before = losses(text)
  text[5] = text[4]
  assert before == losses(text)


def test_a_row_without_a_modality_trains_no_classifier_of_it():
  @jax.jit
  def classifiers(changes):
    def loss(params):
      out = OBJECTIVE(params, {}, encode, {**BATCH, **changes}, KEY, np.int32(0))
      return out.metrics["multilabel/loss"]

    return jax.grad(loss)(params())["heads"]["0"]

  lacks = np.arange(B) == 5
  got = classifiers({"text_valid": ~lacks})
  fewer, every = classifiers({"valid": BATCH["valid"] & ~lacks}), classifiers({})
  for name, want, other in (
    ("text", fewer, every),
    ("fusion", fewer, every),
    ("image", every, fewer),
  ):
    slope, same, differs = (x[name]["layer0"]["kernel"] for x in (got, want, other))
    np.testing.assert_allclose(slope, same, rtol=1e-5, atol=1e-6)
    assert np.abs(slope - differs).max() > 1e-3


def test_the_plain_objective_may_classify_what_the_head_makes():
  losses = (("multilabel", *OBJECTIVE.always[0][1:]),)
  plain = contrastive.Objective(losses=losses, heads=OBJECTIVE.heads)
  spec = {m: BATCH[m] for m in ("image", "text")}
  params, _ = plain.init(KEY, Towers(), spec)
  out = plain(params, {}, encode, BATCH, KEY, np.int32(0))
  assert np.isfinite(out.loss) and out.loss > 0


def test_options_that_make_no_sense():
  with pytest.raises(ValueError, match=r"inputs names \['audio'\]"):
    mixup.Objective(switch=1, inputs=("audio",))
  with pytest.raises(ValueError, match="switch = 0 must be at least 1: the step"):
    mixup.Objective()
  assert OBJECTIVE.reads == ("label_kind",)
  with pytest.raises(ValueError, match="the batch has no 'text'"):
    OBJECTIVE.init(KEY, Towers(), {"image": BATCH["image"]})
