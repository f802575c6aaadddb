"""Momentum contrast: a loop over a deque, what is encoded, resuming, 8 devices."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model import catalogue
from model.losses import infonce
from model.objectives import bank, contrastive, memory, moco
from model.types import Encoded
from tests.model.losses import loops
from tests.model.objectives import runs
from tests.model.objectives.runs import SPEC, Identity, unit
from tests.small import batch_of
from training import checkpoint

(B, D), K = SPEC["image"].shape, 12
KEY = jax.random.key(0)


class Fake:
  """encode(...) that gives prepared embeddings, and remembers what it was asked."""

  def __init__(self, online, ema, own=None):
    self.kinds, self.own, self.calls = {"online": online, "ema": ema}, own or {}, []

  def __call__(self, batch, using="online"):
    self.calls.append((using, sorted(m for m in ("image", "text") if m in batch)))
    return {m: Encoded(x) for m, x in self.kinds[using].items() if m in batch}

  def params(self, using="online"):
    return self.own[using]


def steps(n, seed=0):
  """Yields (online, average, batch): raw embeddings that share a signal."""
  rng = np.random.default_rng(seed)
  for i in range(n):
    common = rng.normal(size=(B, D))
    online, ema = (
      {m: (common + rng.normal(size=(B, D))).astype(np.float32) for m in SPEC}
      for _ in range(2)
    )
    batch = dict(SPEC, id=rng.integers(0, 6, B).astype(np.int32))
    yield online, ema, batch | {"valid": np.arange(B) != i}


def term(options, query, positive, anchor, i, k, b, deques, batch, t):
  """(logsumexp over all, the positive's score) of one row."""
  scores, own = [], query @ positive / t
  by_ids, ids = options.get("negatives") == "ids", batch["id"]
  if options.get("in_batch", True):
    for j in range(B):
      if j != i and batch["valid"][j] and not (by_ids and ids[j] == ids[i]):
        scores.append(anchor @ k[b][j] / t)
  held = [x for x, name, ok in deques[b] if ok and not (by_ids and name == ids[i])]
  similar = sorted((anchor @ x / t for x in held), reverse=True)
  if options.get("hard"):
    skip = options.get("skip", 0)
    similar = similar[skip : skip + options["hard"]]
  return loops.lse([own, *scores, *similar]), own


def nearest(x, deque, n, without):
  similar = sorted(
    (x @ y, p) for p, (y, name, ok) in enumerate(deque) if ok and name != without
  )
  return {p for _, p in similar[-n:]}


def loop(options, online, ema, batch, deques, t=0.2):
  """The loss in f64; then enqueues."""
  q, k = (unit({m: x.astype(np.float64) for m, x in e.items()}) for e in (online, ema))
  both = [("image", "text"), ("text", "image")]
  total = []
  for a, b in both if options.get("symmetric", True) else both[:1]:
    for i in range(B):
      if not batch["valid"][i]:
        continue
      x, y = q[a][i], k[b][i]
      lse, own = term(options, x, y, x, i, k, b, deques, batch, t)
      row = lse - own
      if options.get("positives"):
        n = options["positives"]
        without = batch["id"][i] if options.get("negatives") == "ids" else None
        near = nearest(y, deques[b], n, without)
        near &= nearest(k[a][i], deques[a], n, without)
        row += sum(lse - x @ deques[b][p][0] / t for p in near)
      if options.get("key_anchor"):
        lse, own = term(options, x, y, y, i, k, b, deques, batch, t)
        row += options["key_anchor"] * (lse - own)
      total.append(row)
  for m, deque in deques.items():
    deque.extend(zip(k[m], batch["id"], batch["valid"]))
  return np.mean(total)


OPTIONS = [
  dict(queue=K, in_batch=False),
  dict(queue=K, negatives="ids", symmetric=False),
  dict(queue=0),
  dict(queue=K, in_batch=False, hard=3, skip=1, key_anchor=0.5),
  dict(queue=K, positives=5, in_batch=False, negatives="ids"),
]


def test_a_row_without_an_image_leaves_its_text_in_the_queue():
  objective = moco.Objective(queue=K, learned=False)
  params, state = objective.init(KEY, Identity(), SPEC)
  online, ema, batch = next(steps(1))
  row = ~batch.pop("valid")

  def run(marks):
    seen = {**batch, **online, **marks}
    return objective(params, state, Fake(online, ema), seen, KEY, jnp.int32(0))

  some, none = run({"image_valid": ~row}), run({"valid": ~row})
  assert some.loss == none.loss != run({}).loss
  held = {m: np.asarray(some.state["queue"][m]["valid"]).sum() for m in SPEC}
  assert held == dict(image=B - 1, text=B)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_is_the_loop_over_a_deque(options):
  objective = moco.Objective(temperature=0.2, **options)
  params, state = objective.init(KEY, Identity(), SPEC)
  deques = {m: collections.deque(maxlen=options["queue"]) for m in SPEC}

  @jax.jit
  def run(state, online, ema, batch):
    def loss(online, ema):
      out = objective(params, state, Fake(online, ema), batch, KEY, jnp.int32(0))
      return out.loss, out.state

    (value, state), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(online, ema)
    return value, state, grads

  for online, ema, batch in steps(5):
    here = {**batch, **online}  # whatever: `Fake` only looks which are there
    value, state, (grad, none) = run(state, online, ema, here)
    exact = {m: x.astype(np.float64) for m, x in online.items()}
    copies = jax.tree.map(lambda d: collections.deque(d, d.maxlen), deques)
    want = loop(options, exact, ema, batch, deques)
    np.testing.assert_allclose(value, want, rtol=2e-6, atol=1e-7)
    jax.tree.map(lambda g: np.testing.assert_array_equal(g, 0), none)
  step = np.zeros((B, D))
  step[1, 2] = 1e-5
  moved = (
    loop(options, exact | {"image": exact["image"] + s}, ema, batch, copies_of(copies))
    for s in (step, -step)
  )
  slope = np.subtract(*moved) / 2e-5
  np.testing.assert_allclose(grad["image"][1, 2], slope, rtol=1e-4, atol=1e-6)


def copies_of(deques):
  return {m: collections.deque(d, d.maxlen) for m, d in deques.items()}


def test_without_a_queue_it_is_infonce_against_the_keys_of_the_average():
  online, ema, batch = next(steps(1))
  objective = moco.Objective(temperature=0.2, learned=True)
  params, state = objective.init(KEY, None, SPEC)
  batch = {**batch, **online}
  encode = Fake(online, ema)
  out = jax.jit(lambda p: objective(p, state, encode, batch, KEY, jnp.int32(0)))(params)
  assert out.state == {}
  q, k = unit(online), unit(ema)
  one_way = 0.0
  for a, b in (("image", "text"), ("text", "image")):
    loss = infonce.Loss(temperature=0.2)
    _, metrics = jax.jit(loss)(params, {"image": q[a], "text": k[b]}, batch)
    one_way += metrics["infonce/image_to_text"] / 2
  np.testing.assert_allclose(out.loss, one_way, rtol=2e-6)


def test_where_negatives_come_from_is_one_axis():
  """Batch, bank and queue: the same views, heads and first parameters otherwise."""
  names = ("image_1", "image_2")
  noise = dict(crop=(), flip=0.0, jitter=0.0, grayscale=0.0, blur=0.0, noise=0.5)
  shared = dict(
    views=(("image", names, (("augment", noise),)),),
    heads=((names, "projection", dict(layers=1, out=2, norm="none")),),
  )
  loss = ("infonce", 1.0, dict(pairs=(names,), temperature=0.2, learned=False))
  sources = (
    contrastive.Objective(losses=(loss,), **shared),
    moco.Objective(pairs=(names,), temperature=0.2, **shared),
    moco.Objective(pairs=(names,), temperature=0.2, queue=B, **shared),
    bank.Objective(pairs=(names,), temperature=0.2, rows=8, **shared),
  )
  image = np.random.default_rng(0).normal(size=(B, 4, 4, 2)).astype(np.float32)
  batch = {"image": image, "id": np.arange(B, dtype=np.int32)}

  class Flat(Identity):
    def apply(self, params, batch, train):
      return {"image": Encoded(batch["image"].reshape(B, -1))}, {}

  class Same:
    """At the first step the average is a copy."""

    def __init__(self, params):
      self.own, self.looks = params, []

    def __call__(self, batch, using="online"):
      self.looks.append(batch["image"])
      return Flat().apply({}, batch, True)[0]

    def params(self, using="online"):
      return self.own

  @jax.jit
  def first(key):
    out = []
    for objective in sources:
      params, state = objective.init(key, Flat(), batch)
      encode = Same(params)
      loss = objective(params, state, encode, batch, key, jnp.int32(0)).loss
      out.append((params, loss, encode.looks[:2]))
    return out

  (params, loss, looks), *others = first(KEY)
  for own, _, seen in others:
    jax.tree.map(np.testing.assert_array_equal, own, params)
    jax.tree.map(np.testing.assert_array_equal, seen, looks)
  np.testing.assert_allclose(others[0][1], loss, rtol=2e-6)  # no queue: InfoNCE
  np.testing.assert_allclose(others[1][1], loss, rtol=2e-6)  # an empty one: likewise


def test_only_what_is_compared_is_encoded_and_predicted():
  """One view as query, the other as key; heads of the average for keys."""
  views = (("image", ("image_1", "image_2"), ()),)
  head = dict(layers=1, out=2, norm="none")
  objective = moco.Objective(
    pairs=(("image_1", "image_2"),),
    symmetric=False,
    views=views,
    heads=((("image_1", "image_2"), "projection", head),),
    predictors=((("image_1",), "projection", head),),
    queue=B,
  )
  params, state = objective.init(KEY, Identity(), SPEC)
  assert params["heads"]["0"]["layer0"]["kernel"].shape == (D, 2)
  assert params["predictors"]["0"]["layer0"]["kernel"].shape == (2, 2)
  assert {m: q["keys"].shape for m, q in state["queue"].items()} == {
    "image_2": (B, 1, 2)
  }
  online, ema, batch = next(steps(1))
  own = jax.tree.map(lambda x: -2 * x, params)  # of the average
  encode, here = Fake(online, ema, {"ema": own}), batch | online
  out = jax.jit(lambda p: objective(p, state, encode, here, KEY, jnp.int32(0)))(params)
  assert encode.calls == [("online", ["image"]), ("ema", ["image"])]
  key = unit({"image": ema["image"] @ own["heads"]["0"]["layer0"]["kernel"]})["image"]
  got = out.state["queue"]["image_2"]["keys"][:, 0]
  np.testing.assert_allclose(got, key, rtol=1e-5, atol=1e-6)
  q = online["image"]
  for name in ("heads", "predictors"):
    q = q @ params[name]["0"]["layer0"]["kernel"]
  want = np.sum(unit({"q": q})["q"] * key, axis=-1)[batch["valid"]].mean()
  positive = out.metrics["moco/positive_image_1_image_2"]
  np.testing.assert_allclose(positive, want, rtol=1e-4, atol=1e-6)


def test_scores_of_a_long_queue_are_not_held():
  b, d, k = 256, 16, 65_536
  objective = moco.Objective(queue=k, in_batch=False, symmetric=False, tile=4096)
  spec = {m: jax.ShapeDtypeStruct((b, d), jnp.float32) for m in SPEC}
  params, _ = objective.init(KEY, Identity(), SPEC | {"text": SPEC["image"]})
  state = {"queue": {"text": jax.eval_shape(lambda: memory.queue(k, b, d))}}

  def loss(online, state, ema):
    encode = Fake(online, ema)
    return objective(params, state, encode, online, KEY, jnp.int32(0)).loss

  compiled = jax.jit(jax.grad(loss)).lower(spec, state, spec).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 4 * b * k / 4


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (dict(in_batch=False), "leave no negatives"),
    (dict(queue=K, hard=3), "Set in_batch to False and queue to at least hard"),
    (dict(queue=K, in_batch=False, hard=9, skip=9), r"hard = 9.*skip = 9"),
    (dict(queue=K, skip=3), r"needs hard > 0"),
    (dict(queue=K, positives=2, symmetric=False), "queues of both sides"),
    (dict(queue=-1), r"queue = -1 must be 0 or more"),
    (dict(negatives="all"), "negatives = 'all'"),
  ],
)
def test_options_that_do_not_fit_are_errors(options, message):
  with pytest.raises(ValueError, match=message):
    moco.Objective(**options)


def test_what_is_not_there_is_named():
  objective = moco.Objective(pairs=(("image", "audio"),))
  with pytest.raises(ValueError, match=r"'audio'.*no modality of the batch and no"):
    objective.init(KEY, None, SPEC)
  with pytest.raises(ValueError, match=r"10 % 4 = 2.*Set config\.objective\.options\."):
    moco.Objective(queue=10).init(KEY, Identity(), SPEC)


def test_is_built_from_a_config_and_can_be_hashed():
  options = dict(queue=8, heads=[[["image"], "projection", {}]])
  build = lambda: catalogue.load(  # noqa: E731
    "model.objectives", "moco", "Objective", options
  )
  assert build() == build() and hash(build()) == hash(build())
  assert build() != moco.Objective(queue=8)


def trained(mesh):
  head = ("projection", dict(out=4))
  heads = ((("image",), *head), (("text",), *head))
  # Whatever looks for keys in the queue, so that it does on eight devices.
  looking = dict(in_batch=False, hard=6, skip=1, key_anchor=0.5, positives=4)
  options = dict(queue=16, heads=heads, **looking)
  return runs.trained("moco", options, mesh, ema=1.0, ema_warmup=False)


@pytest.fixture(scope="module")
def one():
  return trained(dict(data=1))


def test_m_of_1_leaves_the_key_tower_alone(one):
  *_, states, _ = one
  jax.tree.map(np.testing.assert_array_equal, states[0].ema, states[-1].ema)
  moved = jax.tree.map(lambda a, b: (a != b).any(), states[0].params, states[-1].params)
  assert all(jax.tree.leaves(moved["objective"]["heads"]))


def test_the_queue_fills_and_turns(one):
  *_, states, _ = one
  first, second, third = (s.objective_state["queue"]["text"] for s in states[1:])
  assert (first["valid"].sum(), second["valid"].sum()) == (8, 16)
  assert [int(x["next"]) for x in (first, second, third)] == [1, 0, 1]
  np.testing.assert_array_equal(second["keys"][:, 1], third["keys"][:, 1])
  assert (second["keys"][:, 0] != third["keys"][:, 0]).any()


def test_eight_devices_are_one_device(one):
  _, _, states, values = one
  _, _, states8, values8 = trained(dict(data=2, fsdp=2, expert=2))
  np.testing.assert_allclose(values8, values, rtol=1e-5)
  near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
  for a, b in zip(states8, states):
    jax.tree.map(near, a.params, b.params)
    jax.tree.map(near, a.objective_state, b.objective_state)


def test_resumes_bit_for_bit(one, tmp_path):
  setup, step, states, values = one
  keeper = checkpoint.Checkpointer(str(tmp_path), setup.config.checkpoint)
  keeper.save(2, states[2], {})
  with jax.set_mesh(setup.mesh):
    state, _ = keeper.restore(setup.abstract_state())
    state, metrics = step(state, setup.put(batch_of(setup.config, seed=2)))
  keeper.close()
  assert float(metrics["loss"]) == values[2]
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), states[3])
