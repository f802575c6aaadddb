"""Views encoded one by one, and heads on top of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from model.encoders import towers as towers_lib
from model.heads import projection
from model.losses import infonce
from model.objectives import bank, contrastive, moco, parts
from model.types import Encoded
from tests import small
from training import step as step_lib

B, D = 6, 4
KEY = jax.random.key(0)
NOISE = dict(crop=(), flip=0, jitter=0, grayscale=0, blur=0, noise=0.5)
TWO = (("image", ("image_1", "image_2"), (("augment", NOISE),)),)


def batch_of():
  rng = np.random.default_rng(0)
  return {
    "image": rng.normal(size=(B, 4, 4, 3)).astype(np.float32),
    "text": rng.normal(size=(B, 3)).astype(np.float32),
    "text_mask": np.ones((B, 3), bool),
    "valid": np.ones(B, bool),
  }


class Encode:
  """Linear towers; remembers what it was asked for."""

  def __init__(self, own=None):
    rng = np.random.default_rng(1)
    wide = dict(image=48, text=3)
    self.w = {m: rng.normal(size=(n, D)).astype(np.float32) for m, n in wide.items()}
    self.calls, self.own = [], own

  def __call__(self, batch, using="online"):
    self.calls.append((using, sorted(batch)))
    times = {"online": 1.0, "ema": 2.0, "frozen": 3.0}[using]
    return {
      m: Encoded(
        times * jnp.asarray(batch[m]).reshape(B, -1) @ w,
        jnp.asarray(batch[m]).reshape(B, -1, 1),
        jnp.ones((B, w.shape[0]), bool),
      )
      for m, w in self.w.items()
      if m in batch
    }

  def params(self, using):
    return {"online": None, "ema": self.own}[using]


def test_every_view_is_encoded_by_a_call_of_its_own():
  encode, batch = Encode(), batch_of()
  views = parts.build_views(TWO)
  z = parts.encode_views(encode, batch, views, KEY)
  assert set(z) == {"image_1", "image_2", "text"}
  assert set(z) == set(parts.view_names(("image", "text"), views))
  assert encode.calls == [
    ("online", ["image", "text", "text_mask", "valid"]),
    ("online", ["image", "valid"]),
  ]
  plain = encode(batch)
  np.testing.assert_array_equal(z["text"].pooled, plain["text"].pooled)
  assert np.abs(z["image_1"].pooled - z["image_2"].pooled).max() > 0.1
  again = parts.encode_views(encode, batch, views, KEY, "frozen")
  np.testing.assert_allclose(
    again["image_2"].pooled, 3 * z["image_2"].pooled, rtol=1e-5
  )
  other = parts.encode_views(encode, batch, views, jax.random.key(1))
  assert np.abs(other["image_1"].pooled - z["image_1"].pooled).max() > 0.1


def test_a_modality_may_keep_its_name_beside_views_and_both_may_have_some():
  encode, batch = Encode(), batch_of()
  views = parts.build_views(
    (*TWO, ("image", ("image",), ()), ("text", ("text_1", "text_2"), ()))
  )
  z = parts.encode_views(encode, batch, views, KEY)
  assert list(z) == ["image_1", "image_2", "image", "text_1", "text_2"]
  assert [set(c[1]) & {"image", "text"} for c in encode.calls] == 3 * [
    {"image"}
  ] + 2 * [{"text"}]
  np.testing.assert_array_equal(z["image"].pooled, encode(batch)["image"].pooled)


@pytest.mark.parametrize(
  ("views", "message"),
  [
    ((("image", "image_1"),), r"views\[0\] = .* must be \(modality, names"),
    ((("image", "image_1", ()),), "must be different names, in a tuple"),
    ((*TWO, *TWO), r"views\[1\] names \['image_1', 'image_2'\] again"),
    ((("image", ("a",), ("augment",)),), r"'augment' must be \(view, options\)"),
    ((("image", ("a",), (("augmnt", {}),)),), "did you mean augment"),
    ((("image", ("a",), (("augment", {"flp": 1}),)),), "did you mean flip"),
    ((("imag", ("a",), ()),), r"looks at 'imag', which .*did you mean image"),
    ((("image", ("text",), ()),), r"names \['text'\]: these are other modalities"),
  ],
)
def test_views_that_cannot_be_are_refused(views, message):
  with pytest.raises(ValueError, match=message):
    contrastive.Objective(views=views).init(KEY, None, batch_of())


def test_views_lack_what_their_modality_lacks():
  batch = batch_of() | {"image_valid": np.arange(B) != 1}
  marked = parts.marked(batch, parts.build_views(TWO))
  for name in ("image_1", "image_2"):
    np.testing.assert_array_equal(marked[f"{name}_valid"], batch["image_valid"])
  assert parts.marked(batch_of(), parts.build_views(TWO)).keys() == batch_of().keys()


def test_towers_say_what_heads_will_be_given_and_take_small_crops():
  config = small.tiny()
  towers = towers_lib.build(config.model)
  views = parts.build_views(
    (
      ("image", ("image",), ()),
      ("image", ("local",), (("augment", dict(size=(4, 8))),)),
    )
  )
  spec = parts.spec(towers, small.batch_of(config), views)
  assert {k: e.pooled.shape for k, e in spec.items()} == {
    "image": (16, 8),
    "local": (16, 8),
    "text": (16, 8),
  }
  assert (spec["image"].tokens.shape[1], spec["local"].tokens.shape[1]) == (4, 2)


def test_heads_share_parameters_by_entry_and_see_what_earlier_ones_gave():
  entries = (
    (("image_1", "image_2"), "projection", dict(out=3, norm="none")),
    (("image_1",), "projection", dict(out=5, norm="none")),
  )
  heads = parts.Heads(entries)
  z = parts.encode_views(Encode(), batch_of(), parts.build_views(TWO), KEY)
  params = heads.init(KEY, jax.eval_shape(lambda: z))
  assert set(params) == {"0", "1"}
  assert params["1"]["layer0"]["kernel"].shape == (3, 3)
  out = heads(params, z, KEY, True)
  assert {k: e.pooled.shape[1] for k, e in out.items()} == {
    "image_1": 5,
    "image_2": 3,
    "text": D,
  }
  first = dict(entries[0][2])
  alone = projection.Head(**first)(params["0"], {"x": z["image_2"]}, KEY, True)
  np.testing.assert_allclose(out["image_2"].pooled, alone["x"].pooled, rtol=1e-5)
  assert heads == parts.Heads(entries) != parts.Heads(entries[:1]) and hash(heads)
  with pytest.raises(ValueError, match="put on 'image_3', which nothing encodes"):
    parts.Heads(((("image_3",), "projection", {}),)).init(KEY, z)
  with pytest.raises(
    ValueError, match=r"heads\[0\] = .*must be \(names, head, options"
  ):
    parts.Heads((("image_1", "projection"),))


def test_the_objective_normalises_what_heads_give_and_leaves_out_other_rows():
  losses = (("infonce", 1.0, dict(pairs=(("image_1", "image_2"),), learned=False)),)
  heads = ((("image_1", "image_2"), "projection", dict(out=3)),)
  objective = contrastive.Objective(losses=losses, views=TWO, heads=heads)
  batch = batch_of()
  encode = Encode()
  spec = parts.spec(_Towers(encode), batch, objective.seen)
  params, state = objective.init(KEY, _Towers(encode), batch)
  assert (
    set(params) == {"heads"} and params["heads"]["0"]["layer1"]["kernel"].shape[1] == 3
  )
  assert spec["image_1"].pooled.shape == (B, D)
  out = objective(params, state, encode, batch, KEY, 0)
  look, top = jax.random.split(KEY)
  z = parts.encode_views(encode, batch, objective.seen, look)
  z = parts.Heads(heads)(params["heads"], z, top, True)
  z = {m: parts.normalize(e.pooled) for m, e in z.items()}
  want, _ = infonce.Loss(**losses[0][2])({}, z, batch)
  np.testing.assert_allclose(out.loss, want, rtol=1e-5)
  # A row that is not valid moves nothing, batch norm included.
  few = batch | {"valid": np.arange(B) != 2}
  moved = few | {
    "image": np.where(np.arange(B)[:, None, None, None] == 2, 99, few["image"])
  }
  one, two = (objective(params, state, encode, x, KEY, 0).loss for x in (few, moved))
  np.testing.assert_allclose(one, two, rtol=1e-6)


PAIRS = (("image_1", "image_2"),)
TOPPED = dict(views=TWO, heads=((PAIRS[0], "projection", dict(out=3)),))


@pytest.mark.parametrize(
  "objective",
  [
    contrastive.Objective(losses=(("infonce", 1.0, dict(pairs=PAIRS)),), **TOPPED),
    contrastive.Objective(
      losses=(("distill", 1.0, dict(pairs=PAIRS)),), teacher="ema", **TOPPED
    ),
    moco.Objective(pairs=PAIRS, predictors=TOPPED["heads"], **TOPPED),
    bank.Objective(rows=B, pairs=PAIRS, **TOPPED),
  ],
  ids=["contrastive", "teacher", "moco", "bank"],
)
def test_batch_norm_is_not_of_rows_that_lack_the_modality(objective):
  """Every mask of `Encode` is True, as a tower's is with a token of its own, cls."""
  batch = batch_of() | {"id": np.arange(B, dtype=np.int32)}
  params, state = objective.init(KEY, _Towers(Encode()), batch)
  encode = Encode(own=jax.tree.map(lambda x: x + 0.3, params))
  run = jax.jit(lambda batch: objective(params, state, encode, batch, KEY, 0).loss)
  lacks = (np.arange(B) == 2)[:, None, None, None]
  other = np.where(lacks, np.float32(99), batch["image"])
  few = {"image_valid": ~lacks.ravel()}
  one, two = (run({**batch, "image": x, **few}) for x in (batch["image"], other))
  np.testing.assert_allclose(one, two, rtol=1e-6)
  assert abs(run(batch | {"image": other}) - one) > 1e-3


def test_what_heads_make_lacks_what_its_sources_lack():
  entries = (
    (("image", "text"), "fusion", dict(classes=2)),
    (("text_class", "image_class"), "projection", dict(layers=1)),
  )
  heads = parts.Heads(entries)
  batch = batch_of() | {"image_valid": np.arange(B) != 1}
  marked = heads.marked(batch)
  made = {"image_class_valid", "fusion_class_valid"}
  assert marked.keys() - batch.keys() == made
  for key in made:
    np.testing.assert_array_equal(marked[key], batch["image_valid"])
  both = heads.marked(batch | {"text_valid": np.arange(B) != 3})
  np.testing.assert_array_equal(both["text_class_valid"], np.arange(B) != 3)
  np.testing.assert_array_equal(
    both["fusion_class_valid"], ~np.isin(np.arange(B), (1, 3))
  )
  assert heads.marked(batch_of()).keys() == batch_of().keys()
  # A head on top of another is told as well.
  encoded = Encode()(batch)
  out = heads(heads.init(KEY, encoded), encoded, KEY, True, batch)
  np.testing.assert_array_equal(
    out["image_class"].mask[:, 0], batch["image_valid"], strict=False
  )


@dataclasses.dataclass
class _Towers:
  """As model.encoders.towers.Towers, of `Encode`."""

  encode: Encode

  def init(self, key, batch, train):
    del key, batch, train
    return {}

  def apply(self, params, batch, train):
    del params, train
    return self.encode(batch), {}


def test_a_teacher_sees_the_same_views_without_gradient():
  losses = (("infonce", 1.0, dict(pairs=(("image_1", "image_2@teacher"),))),)
  heads = ((("image_1", "image_2"), "projection", dict(out=3, norm="none")),)
  batch, views = batch_of(), parts.build_views(TWO)
  towers = _Towers(Encode())
  make = lambda teacher: contrastive.Objective(  # noqa: E731
    losses=losses, views=TWO, heads=heads, teacher=teacher
  )
  params, _ = make("frozen").init(KEY, towers, batch)
  other = jax.tree.map(lambda x: x + 1, params)
  look, top = jax.random.split(KEY)
  for teacher, on_top in (("frozen", None), ("ema", other["heads"])):
    encode = Encode(own=other)
    got = make(teacher)._encode(params, encode, batch, KEY)
    # Only what a loss reads: not the first view, nor the text.
    assert [c[0] for c in encode.calls] == ["online"] * 2 + [teacher]
    assert encode.calls[-1][1] == ["image", "valid"] and "image_1@teacher" not in got
    assert make(teacher).frozen == (teacher == "frozen")
    want = parts.encode_views(Encode(), batch, views, look, teacher)
    want = {"image_2": want["image_2"]}
    if on_top:
      want = parts.Heads(heads)(on_top, want, top, False)
    np.testing.assert_allclose(
      got["image_2@teacher"].pooled, want["image_2"].pooled, rtol=1e-5
    )
  x = jnp.ones((B, D))
  grad = jax.grad(
    lambda x: jnp.sum(
      make("frozen")
      ._encode(
        params, lambda b, using: {"image": Encoded(x), "text": Encoded(x)}, batch, KEY
      )["image_2@teacher"]
      .pooled
    )
  )(x)
  np.testing.assert_array_equal(grad, 0)
  with pytest.raises(ValueError, match=r"teacher = 'emma' must be one of"):
    make("emma")
  with pytest.raises(ValueError, match=r"reads what it encodes: name 'image@teacher'"):
    contrastive.Objective(teacher="ema")


def test_without_views_and_heads_the_program_is_the_plain_one():
  """To the letter: encode, normalise, the weighted losses; no key is used."""
  objective = contrastive.Objective(losses=(("infonce", 0.5, {}),), views=(), heads=())
  encode, batch = Encode(), batch_of()
  params, _ = objective.init(KEY, None, batch)
  assert jax.tree.structure(params) == jax.tree.structure(
    {"infonce": {"log_scale": 0.0}}
  )

  def plain(params, batch, key):
    z = {m: e.pooled.astype(jnp.float32) for m, e in encode(batch).items()}
    z = {m: parts.normalize(x) for m, x in z.items()}
    value, _ = infonce.Loss()(params["infonce"], z, batch)
    return jnp.zeros((), jnp.float32) + 0.5 * value

  def ours(params, batch, key):
    return objective(params, {}, encode, batch, key, 0).loss

  programs = [
    jax.jit(f).lower(params, batch, KEY).as_text().replace(f.__name__, "f")
    for f in (plain, ours)
  ]
  assert programs[0] == programs[1]


def test_the_real_step_has_views_heads_and_a_teacher():
  config = small.tiny(ema=0.9)
  pairs = (("image_1", "image_2"),)
  config.objective.options.update(
    views=(("image", pairs[0], (("augment", {}),)),),
    heads=((pairs[0], "projection", dict(out=4)),),
    losses=(("distill", 1.0, dict(pairs=pairs)), ("infonce", 1.0, dict(pairs=pairs))),
    teacher="ema",
  )
  setup = small.one_device(config)
  state = setup.abstract_state()
  assert state.params["objective"]["heads"]["0"]["layer1"]["kernel"].shape == (8, 4)
  assert not state.frozen  # clip_help_simclr's is: tests/configs/test_methods.py
  loss = step_lib.make_loss(config, setup.towers, setup.objective)
  batch = setup.put(small.batch_of(config))
  with jax.set_mesh(setup.mesh):
    _, (metrics, _) = jax.eval_shape(loss, state.params, state, batch)
  assert {
    "distill/loss",
    "infonce/loss",
    "distill/image_1_to_image_2",
  } <= metrics.keys()
