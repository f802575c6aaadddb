"""The memory bank, against a loop over its rows; the constant Z; 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.objectives import bank
from model.types import Encoded
from tests.model.losses import loops
from tests.model.objectives import runs
from tests.model.objectives.runs import SPEC, Identity, unit

(B, D), N, T, M = SPEC["image"].shape, 10, 0.2, 0.5
KEY = jax.random.key(0)


def steps(n, seed=1):
  rng = np.random.default_rng(seed)
  for i in range(n):
    z = {m: rng.normal(size=(B, D)).astype(np.float32) for m in SPEC}
    ids = rng.permutation(N)[:B].astype(np.int32)
    ids[3] = N if i == 1 else ids[3]  # has no row
    yield z, {"id": ids, "valid": np.arange(B) != i}


def rows_of(batch):
  return [i for i in range(B) if batch["valid"][i] and batch["id"][i] < N]


def terms(form, z, rows, batch, negatives, log_z):
  """(loss, log Z) of one direction, row by row; z, rows: one f64 array each."""
  k = len(negatives) if len(negatives) < N else N - 1
  scores, own = {}, {}
  for i in rows_of(batch):
    me = batch["id"][i]
    own[i] = z[i] @ rows[me] / T
    scores[i] = [z[i] @ rows[j] / T for j in negatives if j != me]
  if form == "softmax":
    return np.mean([loops.lse([own[i], *scores[i]]) - own[i] for i in own]), None
  if log_z is None:
    every = loops.lse([s for i in own for s in (own[i], *scores[i])])
    log_z = every - np.log(len(own) * (k + 1)) + np.log(N)
  share, total = k / N, []
  for i in own:
    p = np.exp(own[i] - log_z)
    row = -np.log(p / (p + share + bank.EPSILON))
    for s in scores[i]:
      row -= np.log(share / (np.exp(s - log_z) + share + bank.EPSILON))
    total.append(row)
  return np.mean(total), log_z


def loop(form, z, banks, batch, negatives, log_z):
  z = unit({m: x.astype(np.float64) for m, x in z.items()})
  both = [("image", "text"), ("text", "image")]
  out = {
    f"{a}_to_{b}": terms(form, z[a], banks[b], batch, negatives, log_z[f"{a}_to_{b}"])
    for a, b in both
  }
  return np.mean([v for v, _ in out.values()]), {to: x for to, (_, x) in out.items()}


def blended(banks, z, batch):
  z = unit({m: x.astype(np.float64) for m, x in z.items()})
  banks = {m: np.array(x) for m, x in banks.items()}
  for m, rows in banks.items():
    for i in rows_of(batch):
      new = M * rows[batch["id"][i]] + (1 - M) * z[m][i]
      rows[batch["id"][i]] = new / np.linalg.norm(new)
  return banks


@pytest.mark.parametrize(
  "options", [dict(form="softmax"), dict(), dict(drawn=6)], ids=str
)
def test_is_the_loop_over_the_bank(options):
  objective = bank.Objective(rows=N, temperature=T, momentum=M, **options)
  params, state = objective.init(KEY, Identity(), SPEC)
  rows = lambda s: {m: np.float64(b["rows"]) for m, b in s["bank"].items()}  # noqa: E731
  banks, log_z = rows(state), dict.fromkeys(("image_to_text", "text_to_image"))

  @jax.jit
  def run(state, z, batch, key):
    def loss(z):
      encode = lambda batch, using: {m: Encoded(x) for m, x in z.items()}  # noqa: E731
      out = objective(params, state, encode, batch, key, jnp.int32(0))
      return out.loss, out

    return jax.value_and_grad(loss, has_aux=True)(z)

  for i, (z, batch) in enumerate(steps(3)):
    key = jax.random.key(i)
    negatives = np.arange(N)
    if objective.drawn:
      draw = jax.random.fold_in(key, 2)
      negatives = np.asarray(jax.random.randint(draw, (6,), 0, N, jnp.int32))
    (value, out), grads = run(state, z, batch, key)
    state = out.state
    before, first = banks, log_z
    want, log_z = loop(objective.form, z, banks, batch, negatives, log_z)
    np.testing.assert_allclose(value, want, rtol=3e-6)
    banks = blended(banks, z, batch)
    for m, want in banks.items():
      np.testing.assert_allclose(rows(state)[m], want, rtol=1e-5, atol=1e-6)
    outside = 1 / 3 if i == 1 else 0
    np.testing.assert_allclose(out.metrics["bank/outside"], outside, rtol=1e-6)
  if objective.form == "nce":
    assert log_z == first  # of the first batch, for good
    for to, x in log_z.items():
      np.testing.assert_allclose(state["log_z"][to], x, rtol=1e-5)
  step = np.zeros((B, D))
  step[1, 2] = 1e-5
  ahead, behind = (
    loop(objective.form, z | {"image": z["image"] + s}, before, batch, negatives, first)
    for s in (step, -step)
  )
  slope = (ahead[0] - behind[0]) / 2e-5
  np.testing.assert_allclose(grads["image"][1, 2], slope, rtol=1e-4, atol=1e-6)


def test_a_name_with_itself_is_instance_discrimination():
  objective = bank.Objective(rows=N, pairs=(("image", "image"),), form="softmax")
  _, state = objective.init(KEY, Identity(), SPEC)
  assert state.keys() == {"bank"} and state["bank"].keys() == {"image"}
  assert objective._directions() == (("image", "image"),)


def test_eight_devices_are_one_device():
  options = dict(rows=16, drawn=8, temperature=0.5)
  one, eight = (
    runs.trained("bank", options, mesh, n=2)[2:]
    for mesh in (dict(data=1), dict(data=2, fsdp=2, expert=2))
  )
  np.testing.assert_allclose(eight[1], one[1], rtol=1e-5)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
  jax.tree.map(near, eight[0][-1].params, one[0][-1].params)
  jax.tree.map(near, eight[0][-1].objective_state, one[0][-1].objective_state)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(rows=1), "rows = 1 must be at least 2"),
    (dict(rows=8, form="sum"), r"form = 'sum' must be one of \('nce', 'softmax'\)"),
    (dict(rows=8, momentum=1.0), "momentum = 1.0 in"),
  ],
)
def test_options_out_of_range_are_errors(options, message):
  with pytest.raises(ValueError, match=message):
    bank.Objective(**options)


def test_what_is_not_there_is_named():
  objective = bank.Objective(rows=8, pairs=(("image", "audio"),))
  with pytest.raises(ValueError, match=r"pairs.*'audio'.*no modality"):
    objective.init(KEY, Identity(), SPEC)
